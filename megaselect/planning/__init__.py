"""The fastest plan within a budget of bytes. Needs no torch."""
