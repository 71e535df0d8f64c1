"""Proof, while it runs, that recomputation changes memory and time and nothing else: for our model, and for any."""

from megaselect.verification.any_module import verify

__all__ = ["verify"]
