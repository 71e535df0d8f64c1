"""The settings that benchmarks compare, by the names that flags and reports use. Needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ATTENTIONS = ("unfused", "fused", "sdpa")
KERNELS = ("k1", "k2", "bdrl", "layernorm")
SHAPES = ("gpt2", "gpt2-sdpa", "llama")  # of the part any-model
BASELINES = ("plain", "plain-compiled", "huggingface", "megatron")

# Name -> a config's section `recompute`.
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {"mode": "none"},
    "selective": {"mode": "selective"},
    "dropout": {"mode": "selective", "modules": ["dropout"]},
    "core_attn": {"mode": "selective", "modules": ["core_attn", "dropout"]},
    "layernorm": {"mode": "selective", "modules": ["core_attn", "dropout", "layernorm"]},
    "all": {"mode": "selective", "modules": "all"},
    "full": {"mode": "full"},
}


@dataclass(frozen=True)
class BenchmarkSetting:
    """One way to compute attention (of ATTENTIONS) and one of what is recomputed (of RECOMPUTE)."""

    attention: str
    recompute: str
    compiled: bool = False

    @property
    def label(self) -> str:
        """As tables show it: `fused all`, `unfused none, compiled`."""
        return f"{self.attention} {self.recompute}{', compiled' if self.compiled else ''}"
