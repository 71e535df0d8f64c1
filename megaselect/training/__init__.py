"""Training runs: optimizer, schedule, data, checkpoints, metrics, and the loop that joins them."""
