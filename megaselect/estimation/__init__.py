"""What each setting costs, before anything runs. Imports no torch but for models of other people's (any_model.py)."""
