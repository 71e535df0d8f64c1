"""Right ways to checkpoint besides transformers' own: torch's, other packages', and forms of a call."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils import checkpoint as module
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

from corpus.fault import Case, Chain, Run, batch, chain, dropping, reentrant, region, without
from corpus.functions import OwnCheckpoint, function_run
from corpus.gradient_faults import keeping
from corpus.random_faults import remat


class Wrapper(NamedTuple):
    """make: a new Case. needs: a package; torch: the first version that has it."""

    make: Callable[[], Case]
    needs: str = ""
    torch: tuple[int, int] = (2, 11)


class Blocks(nn.Module):
    """A product, layers that `body` runs in one go, and a loss."""

    def __init__(self, run_all: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.run_all, self.embed = run_all, nn.Linear(8, 8)
        self.layers = nn.ModuleList(dropping() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.run_all(self.layers, self.embed(x)).square().mean()


class OwnMethod(nn.Module):
    """Checkpoints a method of its own, with dropout by the function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(24, 8)

    def body(self, x: Tensor) -> Tensor:
        """The region."""
        return x + nn.functional.dropout(self.fc2(torch.tanh(self.fc1(x))), 0.3, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return region(self.body, self.embed(x)).square().mean()


def nested(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Regions inside of regions."""

    def pair(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        return region(second, region(first, x))

    return region(pair, layers[2], layers[3], region(pair, layers[0], layers[1], x))


def sequential(layers: nn.ModuleList, x: Tensor, use_reentrant: bool) -> Tensor:
    """Two segments."""
    return checkpoint_sequential(list(layers), 2, x, use_reentrant=use_reentrant)


def decorated(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """checkpoint as a decorator."""
    for layer in layers:
        x = checkpoint(use_reentrant=False)(layer)(x)
    return x


def without_early_stop(layer: nn.Module, x: Tensor) -> Tensor:
    """The second run goes on to its end."""
    with set_checkpoint_early_stop(False):
        return region(layer, x)


def saved_on_cpu(layer: nn.Module, x: Tensor) -> Tensor:
    """What the region keeps is moved to the host."""
    with torch.autograd.graph.save_on_cpu():
        return region(layer, x)


def wrapped(impl: CheckpointImpl) -> Callable[[], Case]:
    """As torchtitan and torchtune do it."""

    def make() -> Case:
        model = Chain(dropping, without)
        for number, layer in enumerate(model.layers):
            model.layers[number] = checkpoint_wrapper(layer, checkpoint_impl=impl)
        return Case(model, batch())

    return make


def composable() -> Case:
    """torch's composable form; it has no public path in torch 2.15 either."""
    apply = importlib.import_module("torch.distributed._composable").checkpoint
    model = Chain(dropping, without)
    for layer in model.layers:
        apply(layer)
    return Case(model, batch())


def deepspeed(layer: nn.Module, x: Tensor) -> Tensor:
    """DeepSpeed's, which keeps its own random states."""
    from deepspeed import checkpointing

    return checkpointing.non_reentrant_checkpoint(layer, x)


def deepspeed_reentrant(layer: nn.Module, x: Tensor) -> Tensor:
    """DeepSpeed's autograd function."""
    from deepspeed import checkpointing

    return checkpointing.checkpoint(layer, x)


def partial(layer: nn.Module, x: Tensor) -> Tensor:
    """functools.partial of a module and its argument."""
    return region(functools.partial(layer, x))


def method(layer: nn.Module, x: Tensor) -> Tensor:
    """The bound method, past the module's hooks."""
    return region(layer.forward, x)


def anonymous(layer: nn.Module, x: Tensor) -> Tensor:
    """A lambda."""
    return region(lambda x: layer(x), x)


def mixed(layer: nn.Module, x: Tensor) -> Tensor:
    """Both of torch's forms in one model."""
    return reentrant(layer, region(layer, x))


def by_module(layer: nn.Module, x: Tensor) -> Tensor:
    """Looked up in its module at each call."""
    return module.checkpoint(layer, x, use_reentrant=False)


def blocks(run_all: Callable[[nn.ModuleList, Tensor], Tensor]) -> Callable[[], Case]:
    """Makes a model of all layers at once."""
    return lambda: Case(Blocks(run_all), batch())


def layers(run: Run) -> Callable[[], Case]:
    """Makes a model layer by layer."""
    return chain(dropping, run)


WRAPPERS: dict[str, Wrapper] = {
    "torch, non-reentrant": Wrapper(layers(region)),
    "torch, reentrant": Wrapper(layers(reentrant)),
    "torch, both in one model": Wrapper(layers(mixed)),
    "torch, by its module": Wrapper(layers(by_module)),
    "torch, no early stop": Wrapper(layers(without_early_stop)),
    "torch, selective": Wrapper(layers(keeping(torch.ops.aten.tanh.default))),
    "torch, save_on_cpu": Wrapper(layers(saved_on_cpu)),
    "torch, checkpoint_wrapper": Wrapper(wrapped(CheckpointImpl.NO_REENTRANT)),
    "torch, checkpoint_wrapper reentrant": Wrapper(wrapped(CheckpointImpl.REENTRANT)),
    "torch, checkpoint_sequential": Wrapper(blocks(functools.partial(sequential, use_reentrant=False))),
    "torch, checkpoint_sequential reentrant": Wrapper(blocks(functools.partial(sequential, use_reentrant=True))),
    "torch, nested": Wrapper(blocks(nested)),
    "torch, composable": Wrapper(composable),
    "torch, decorator": Wrapper(blocks(decorated), torch=(2, 14)),
    "a method of the model": Wrapper(lambda: Case(OwnMethod(), batch())),
    "layer.forward": Wrapper(layers(method)),
    "a lambda": Wrapper(layers(anonymous)),
    "functools.partial": Wrapper(layers(partial)),
    "an autograd function of one's own": Wrapper(layers(function_run(OwnCheckpoint))),
    "torch_remat, with a state hook": Wrapper(layers(remat(True)), needs="torch_remat"),
    "DeepSpeed, non-reentrant": Wrapper(layers(deepspeed), needs="deepspeed"),
    "DeepSpeed, its function": Wrapper(layers(deepspeed_reentrant), needs="deepspeed"),
}
