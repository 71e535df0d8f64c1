"""fused and sdpa against unfused: equal but for rounding.

Two attentions add in another order, so bits differ, and how far they may is no matter of taste. Both are held against
the same model and batch in fp64: each gradient's error may be at most twice what unfused's own is. Rounding errors of
two ways to the same numbers differ by less (1.4 was the most in trials over dtypes, shapes and seeds). A tensor whose
own error under unfused is small by chance may have twice the error of all gradients together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaselect.build import build_model
from megaselect.config import Config
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.plan import make_plan
from megaselect.verification.differences import relative_error
from megaselect.verification.settings import SETTINGS, with_attention
from megaselect.verification.step import run_step

if TYPE_CHECKING:
    from megaselect.data.sampler import Batch

FACTOR = 2  # at most so many times the error of unfused


class Exact:
    """The gradients of one batch in fp64, and how far unfused is from them."""

    def __init__(self, config: Config, weights: GPT, batch: Batch, unfused: Mapping[str, Tensor | None]) -> None:
        in_fp64 = _in_fp64(config, weights, batch)
        own = {name: gradient for name in in_fp64 if (gradient := unfused[name]) is not None}
        self.gradients = {name: in_fp64[name] for name in own}
        self.errors = {name: relative_error(own[name], exact) for name, exact in self.gradients.items()}
        self.overall = relative_error(_together(own.values()), _together(self.gradients.values()))

    def faults(self, gradients: Mapping[str, Tensor | None]) -> Iterator[str]:
        """A sentence for each gradient that is further from fp64 than rounding explains."""
        for name, exact in self.gradients.items():
            gradient = gradients[name]
            error = float("inf") if gradient is None else relative_error(gradient, exact)
            allowed = FACTOR * max(self.errors[name], self.overall)
            if not error <= allowed:  # NaN too
                yield (
                    f"{name}: relative error {error:.1e} against fp64; unfused has {self.errors[name]:.1e}, "
                    f"at most {allowed:.1e} is rounding"
                )

    def covered(self, gradients: Mapping[str, Tensor | None]) -> str:
        """What was compared, for a check that passed."""
        found = [gradient for name in self.gradients if (gradient := gradients[name]) is not None]
        error = relative_error(_together(found), _together(self.gradients.values()))
        return f"relative error against fp64 {error:.1e}, of unfused {self.overall:.1e}"


def _in_fp64(config: Config, weights: GPT, batch: Batch) -> dict[str, Tensor]:
    """By the plain-torch fallbacks, layer by layer so that it fits beside the model."""
    overrides = {"model.kernel_backend": "torch", "training.dtype": "fp32"}
    model = build_model(Config.from_dict(with_attention(config, "unfused").to_dict(), overrides=overrides)).double()
    model.load_state_dict({name: value.double() for name, value in weights.state_dict().items()})
    step = run_step(model, batch, make_plan(SETTINGS["full"], config.model.num_layers))
    return {name: gradient for name, gradient in step.gradients.items() if gradient is not None}


def _together(gradients: Iterable[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients])
