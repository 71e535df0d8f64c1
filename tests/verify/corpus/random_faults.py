"""Second runs that draw other random numbers than forward did."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from corpus.fault import WIDTH, Case, Chain, Fault, Layer, Run, batch, chain, dropping, reentrant, region, without
from corpus.functions import Function, OwnCheckpoint, function_run


class NewSeed(OwnCheckpoint):
    """The second run begins wherever the generator is by then."""

    @staticmethod
    def before_second_run(ctx: Function) -> None:
        """The state that forward began with is not put back."""


class Noisy(Layer):
    """Multiplies by what draw() returns, [t, h]; drawn inside, or handed in."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return super().forward(x) * (self.draw() if noise is None else noise)


class OwnGenerator(Noisy):
    """Draws from a torch.Generator that it holds."""

    def __init__(self) -> None:
        super().__init__(self.draw_own)
        self.generator = torch.Generator().manual_seed(0)

    def draw_own(self) -> Tensor:
        return torch.rand(WIDTH, generator=self.generator)


class OwnNumpy(Noisy):
    """Draws from a NumPy generator that it holds."""

    def __init__(self) -> None:
        super().__init__(self.draw_own)
        self.generator = np.random.default_rng(0)

    def draw_own(self) -> Tensor:
        return torch.from_numpy(self.generator.random(WIDTH, dtype=np.float32))


def numpy_noise() -> Noisy:
    """Draws from NumPy's global generator."""
    return Noisy(lambda: torch.from_numpy(np.random.rand(WIDTH).astype(np.float32)))


class SeededByClock(Noisy):
    """Rounds stochastically; the seed is the time."""

    def __init__(self) -> None:
        super().__init__(lambda: torch.rand(WIDTH, generator=torch.Generator().manual_seed(time.time_ns())))


class SeededByCalls(Noisy):
    """Noise of a seed that counts the calls, so that each step has its own."""

    def __init__(self) -> None:
        super().__init__(self.draw_own)
        self.calls = 0

    def draw_own(self) -> Tensor:
        self.calls += 1
        return torch.rand(WIDTH, generator=torch.Generator().manual_seed(self.calls))


def drawn_outside(layer: Noisy, x: Tensor) -> Tensor:
    """The noise is drawn once, and is an argument of the region."""
    return region(layer, x, layer.draw())


class StochasticDepth(Layer):
    """Skips itself half of the time, by Python's random numbers."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        branch = super().forward(x) - x
        return x + branch * (self.decide() if scale is None else scale)

    def decide(self) -> Tensor:
        """2 where it takes part, 0 where it does not."""
        return torch.tensor(2.0 if random.random() < 0.5 else 0.0)


def decided_outside(layer: StochasticDepth, x: Tensor) -> Tensor:
    """Whether it is skipped is an argument."""
    return region(layer, x, layer.decide())


class EndsInRReLU(Layer):
    """torch's RReLU writes its slopes after autograd has kept them."""

    def __init__(self, and_then: nn.Module) -> None:
        super().__init__()
        self.act, self.and_then = nn.RReLU(0.1, 0.9), and_then

    def forward(self, x: Tensor) -> Tensor:
        return self.and_then(self.act(super().forward(x)))


class Compiled(nn.Module):
    """Compiled with a memory budget, below 1 of which the compiler makes dropout's mask again."""

    def __init__(self, budget: float) -> None:
        super().__init__()
        self.budget, self.chain = budget, Chain(dropping, without, layers=1)
        torch.compiler.reset()  # or a graph is taken that was compiled for another budget
        self.compiled = torch.compile(self.chain, backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        from torch._functorch import config  # where the setting lives: it has no public name in torch 2.13

        with config.patch(activation_memory_budget=self.budget):
            return self.compiled(x)


def remat(keep_state: bool) -> Run:
    """torch_remat's checkpoint, by itself or with a hook that puts the random state back."""

    class State:
        snapshot = staticmethod(torch.get_rng_state)
        restore = staticmethod(torch.set_rng_state)

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        import torch_remat

        return torch_remat.checkpoint(recompute_state_hooks=(State(),) if keep_state else ())(layer)(x)

    return run


def wrapped(**settings: Any) -> Callable[[], Case]:
    """Each layer in torch's checkpoint_wrapper."""

    def make() -> Case:
        model = Chain(dropping, without)
        for number, layer in enumerate(model.layers):
            model.layers[number] = checkpoint_wrapper(layer, **settings)
        return Case(model, batch())

    return make


def accelerated() -> Case:
    """As accelerate wraps the layers of a model before FSDP2 shards it: torch's wrapper, by accelerate's function."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils import fsdp2_apply_ac

    model = Chain(dropping, without)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        activation_checkpointing=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Layer"],
    )
    plugin.set_auto_wrap_policy(model)

    class Accelerator:
        class state:
            fsdp_plugin = plugin

    return Case(fsdp2_apply_ac(Accelerator(), model), batch())


DRAWS = "in backward draws other numbers than in forward"
FAULTS = (
    Fault(
        "state-not-preserved",
        "random numbers",
        DRAWS,
        chain(dropping, functools.partial(region, preserve_rng_state=False)),
        chain(dropping),
    ),
    Fault(
        "state-not-preserved-reentrant",
        "random numbers",
        DRAWS,
        chain(dropping, functools.partial(checkpoint, use_reentrant=True, preserve_rng_state=False)),
        chain(dropping, reentrant),
    ),
    Fault(
        "state-not-preserved-by-wrapper",
        "random numbers",
        DRAWS,
        wrapped(preserve_rng_state=False),
        wrapped(),
    ),
    Fault("accelerate-fsdp2", "random numbers", DRAWS, accelerated, wrapped(), needs="accelerate"),
    Fault(
        "torch-remat-default",
        "random numbers",
        DRAWS,
        chain(dropping, remat(False)),
        chain(dropping, remat(True)),
        needs="torch_remat",
    ),
    Fault(
        "own-checkpoint-without-state",
        "random numbers",
        DRAWS,
        chain(dropping, function_run(NewSeed)),
        chain(dropping, function_run(OwnCheckpoint)),
    ),
    Fault("own-generator", "random numbers", DRAWS, chain(OwnGenerator), chain(OwnGenerator, drawn_outside)),
    Fault("numpy-global", "same bits", "differs in", chain(numpy_noise), chain(numpy_noise, drawn_outside)),
    Fault("numpy-generator", "same bits", "differs in", chain(OwnNumpy), chain(OwnNumpy, drawn_outside)),
    Fault(
        "python-random",
        "same bits",
        "differs in",
        chain(StochasticDepth, layers=6),
        chain(StochasticDepth, decided_outside, layers=6),
    ),
    Fault("seed-of-the-clock", "random numbers", DRAWS, chain(SeededByClock), chain(SeededByCalls, drawn_outside)),
    Fault("seed-of-a-counter", "random numbers", DRAWS, chain(SeededByCalls), chain(SeededByCalls, drawn_outside)),
    Fault(
        "rrelu-at-the-end",
        "same bits",
        "differs in",
        chain(lambda: EndsInRReLU(nn.Identity())),
        chain(lambda: EndsInRReLU(nn.Tanh())),
    ),
    Fault(
        "compile-memory-budget",
        "differences",
        "the derivative is",
        lambda: Case(Compiled(0.0), batch()),
        lambda: Case(Compiled(1.0), batch()),
    ),
)
