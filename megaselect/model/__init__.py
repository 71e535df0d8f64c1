"""The GPT model: the maths, with no word about which recompute mode is on."""

from megaselect.model.gpt import GPT

__all__ = ["GPT"]
