"""What is saved for backward and what is recomputed: modules, presets, plans, and the regions that run again."""
