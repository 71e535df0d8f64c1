"""What each recompute setting costs and buys, from a config alone, before anything runs. Imports no torch."""
