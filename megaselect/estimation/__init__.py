"""What each setting costs: from a config alone, before anything runs. Imports no torch."""
