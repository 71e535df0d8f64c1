"""torch.compile of a whole model within torch's memory budget: the share of activations that its partitioner keeps.

Both that budget and the function that is inductor are private to torch: they are looked up here, when they are needed,
and whatever is not there, or cannot compile, is a CompilerUnavailableError that says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.any_model_shapes import Batch
from benchmarks.any_model_ways import Forward

BUDGET = "activation_memory_budget"
GRAPHS = 64


class CompilerUnavailableError(RuntimeError):
    """torch cannot compile here, or has no such budget: why."""


class _Torch(NamedTuple):
    """What is torch's own: configs with `patch`, and inductor as a backend."""

    partitioner: Any
    inductor: Callable[..., Any]


def compiled(budget: float, model: nn.Module, _: Batch) -> Forward:
    """The model within a budget, 1 being torch's own. Dropout draws as it does without the compiler."""
    torch_s = _loaded()

    def backend(graph: Any, inputs: Any) -> Any:
        with torch_s.partitioner.patch({BUDGET: budget}):
            return torch_s.inductor(graph, inputs, config_patches={"fallback_random": True})

    return torch.compile(model, backend=backend)  # another backend each: no graph of another budget is taken


@functools.cache
def _loaded() -> _Torch:
    try:
        import torch._dynamo.config
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx
    except ImportError as error:
        raise CompilerUnavailableError(f"this torch has its compiler's parts elsewhere: {error}") from error
    if not hasattr(config, BUDGET):
        raise CompilerUnavailableError(f"this torch has no {BUDGET}")
    # Graphs of one function: models and budgets. Torch's own limit is 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CompilerUnavailableError(f"torch.compile: {type(error).__name__}: {first_line}") from error
    return _Torch(config, compile_fx)
