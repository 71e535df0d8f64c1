"""Proof that a setting changes no bit: for our model, and for any."""

from megaselect.verification.any_module import verify

__all__ = ["verify"]
