"""Recomputation within trainers of other libraries: each module imports its library, and nothing else here does."""
