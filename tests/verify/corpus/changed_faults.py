"""Tensors that change between a region's two runs. torch guards those that are positional arguments, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from corpus.fault import WIDTH, Case, Chain, Fault, Layer, batch, chain, region

HIDES = "backward raises what checkpointing hides"


class Masked(Layer):
    """Multiplies by a mask that it is given in some way."""

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        if isinstance(mask, dict | list):
            mask = mask["mask"] if isinstance(mask, dict) else mask[0]
        return torch.tanh(super().forward(x) * mask)


class ReusesMask(nn.Module):
    """One mask for all layers, which is changed in place for each; given(layer, x, mask) says how it is handed over."""

    def __init__(self, given: Callable[[nn.Module, Tensor, Tensor], Tensor], new_each: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.given, self.new_each = given, new_each
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Masked() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mask, x = torch.ones(WIDTH), self.embed(x)
        for layer in self.layers:
            mask = mask * 0.5 if self.new_each else mask.mul_(0.5)
            x = self.given(layer, x, mask)
        return x.square().mean()


def by_keyword(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """A keyword argument."""
    return region(layer, x, mask=mask)


def in_a_dict(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Inside a positional dictionary."""
    return region(layer, x, {"mask": mask})


def in_a_list(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Inside a positional list."""
    return region(layer, x, [mask])


def closed_over(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """By the region's function."""
    return region(lambda x: layer(x, mask), x)


def reused(given: Callable[[nn.Module, Tensor, Tensor], Tensor], name: str) -> Fault:
    """A mask changed in place for the next layer, and one made anew."""
    return Fault(
        name,
        "same bits",
        HIDES,
        lambda: Case(ReusesMask(given), batch()),
        lambda: Case(ReusesMask(given, new_each=True), batch()),
    )


class Scratch(Layer):
    """Reads a buffer that all layers share and write to."""

    shared = torch.ones(WIDTH)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return torch.tanh(super().forward(x) * (self.shared if scale is None else scale))


def through_shared_buffer(layer: Scratch, x: Tensor) -> Tensor:
    """The buffer is written before each region, and read inside it."""
    Scratch.shared.copy_(x.detach().abs().mean(0))
    return region(layer, x)


def through_own_tensor(layer: Scratch, x: Tensor) -> Tensor:
    """Each layer has a tensor of its own."""
    return region(layer, x, x.detach().abs().mean(0))


class Residual(Layer):
    """Adds to the residual stream, which is in a list, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor, stream: list[Tensor]) -> Tensor:
        out = super().forward(x)
        if self.in_place:
            with torch.no_grad():
                stream[0].add_(out)
            return out * stream[0]
        return out * (stream[0] + out.detach())


def with_stream(layer: Residual, x: Tensor) -> Tensor:
    """Its stream begins with the input."""
    return region(layer, x, [x.detach().clone()])


class UsesUpMasks(Layer):
    """Takes its mask off an iterator, and goes without where there is none left."""

    def forward(self, x: Tensor, masks: Iterator[Tensor] | Tensor) -> Tensor:
        mask = masks if isinstance(masks, Tensor) else next(masks, torch.ones(WIDTH))
        return super().forward(x) * mask


def from_an_iterator(layer: UsesUpMasks, x: Tensor) -> Tensor:
    """The iterator is the region's argument."""
    return region(layer, x, iter([torch.full([WIDTH], 0.5)]))


def from_the_first(layer: UsesUpMasks, x: Tensor) -> Tensor:
    """The mask is."""
    return region(layer, x, next(iter([torch.full([WIDTH], 0.5)])))


class HiddenInPlace(Layer):
    """exp keeps its result, which is changed in place: autograd alone would refuse it. in_place: False mends it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(super().forward(x) / 4)
        y = y.add_(1) if self.in_place else y + 1
        return y.sin()


class Clamps(Chain):
    """Clamps its weights in place behind the forward pass, as critics of GANs do; early: before it."""

    def __init__(self, early: bool) -> None:
        super().__init__(Layer)
        self.early = early

    def forward(self, x: Tensor) -> Tensor:
        if self.early:
            self.clamp()
        loss = super().forward(x)
        if not self.early:
            self.clamp()
        return loss

    @torch.no_grad()
    def clamp(self) -> None:
        """All weights to ±0.1."""
        for parameter in self.layers.parameters():
            parameter.clamp_(-0.1, 0.1)


class Averaged(Chain):
    """Swaps its weights for their average before backward; or hands the average to an evaluation. in_place: swaps."""

    def __init__(self, in_place: bool) -> None:
        super().__init__(Layer)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        loss = super().forward(x)
        averages = {name: parameter.detach() * 0.999 for name, parameter in self.layers.named_parameters()}
        if self.in_place:
            for name, parameter in self.layers.named_parameters():
                parameter.data = averages[name]
        else:
            with torch.no_grad():
                torch.func.functional_call(self.layers[0], {"fc1.weight": averages["0.fc1.weight"]}, (x,))
        return loss


class StepsInBackward(Chain):
    """Each weight's gradient is used as soon as it is there; both layers are one, so there are two. hooks: set."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(Layer, run)
        self.layers[1] = self.layers[0]
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.step)

    @staticmethod
    def step(parameter: Tensor) -> None:
        """Of gradient descent."""
        with torch.no_grad():
            parameter.sub_(parameter.grad, alpha=0.1)


def reentrant(layer: nn.Module, x: Tensor) -> Tensor:
    """Its nested backward adds each region's gradients at once."""
    return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)


FAULTS = (
    reused(by_keyword, "keyword-changed"),
    reused(in_a_dict, "dict-changed"),
    reused(in_a_list, "list-changed"),
    reused(closed_over, "closure-changed"),
    Fault(
        "shared-buffer",
        "same bits",
        HIDES,
        chain(Scratch, through_shared_buffer),
        chain(Scratch, through_own_tensor),
    ),
    Fault(
        "argument-added-to",
        "same bits",
        "differs in",
        chain(lambda: Residual(True), with_stream),
        chain(lambda: Residual(False), with_stream),
    ),
    Fault(
        "iterator-used-up",
        "same bits",
        "differs in",
        chain(UsesUpMasks, from_an_iterator),
        chain(UsesUpMasks, from_the_first),
    ),
    Fault(
        "in-place-hidden",
        "same bits",
        HIDES,
        chain(lambda: HiddenInPlace(True)),
        chain(lambda: HiddenInPlace(False)),
    ),
    Fault(
        "weights-clamped",
        "same bits",
        HIDES,
        lambda: Case(Clamps(False), batch()),
        lambda: Case(Clamps(True), batch()),
    ),
    Fault(
        "weights-averaged",
        "same bits",
        "differs in",
        lambda: Case(Averaged(True), batch()),
        lambda: Case(Averaged(False), batch()),
    ),
    Fault(
        "step-in-backward",
        "same bits",
        "differs in",
        lambda: Case(StepsInBackward(reentrant), batch()),
        lambda: Case(StepsInBackward(region), batch()),
    ),
)
