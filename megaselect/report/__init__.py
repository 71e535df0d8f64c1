"""What a run tells its user: events (sinks), and where they go (console, wandb)."""
