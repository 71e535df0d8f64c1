"""Checkpoints as people write them themselves, as autograd functions: a right one, and what goes wrong in them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from corpus.fault import Fault, Layer, Run, chain, dropping

Function = Any  # the context of an autograd function


class OwnCheckpoint(torch.autograd.Function):
    """Right: the same random state, autocast and module, gradients of the input and of every parameter."""

    @classmethod
    def kept(cls, x: Tensor) -> Tensor:
        """What is kept of the input."""
        return x

    @staticmethod
    def before_second_run(ctx: Function) -> None:
        """Put back what forward began with."""
        torch.set_rng_state(ctx.state)

    @staticmethod
    def second_module(ctx: Function) -> nn.Module:
        """What runs a second time."""
        return ctx.layer

    @staticmethod
    def autocast(ctx: Function) -> Any:
        """The context of the second run."""
        return torch.autocast("cpu", dtype=ctx.dtype, enabled=ctx.enabled)

    @classmethod
    def gradients(cls, out: Tensor, x: Tensor, parameters: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the input and of the parameters."""
        return torch.autograd.grad(out, [x, *parameters], grad)

    @classmethod
    def forward(cls, ctx: Function, layer: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        """layer(x); the parameters are there to be given gradients."""
        ctx.layer, ctx.state = layer, torch.get_rng_state()
        ctx.enabled, ctx.dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(cls.kept(x))
        ctx.input_dtype = x.dtype
        return layer(x)

    @classmethod
    def backward(cls, ctx: Function, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Runs the layer again."""
        x = ctx.saved_tensors[0].to(ctx.input_dtype).detach().requires_grad_()
        layer = cls.second_module(ctx)
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), cls.autocast(ctx):
            cls.before_second_run(ctx)
            out = layer(x)
        return None, *cls.gradients(out, x, list(layer.parameters()), grad)


class WithoutWeights(OwnCheckpoint):
    """As in many a tutorial: only the input's gradient comes back."""

    @classmethod
    def gradients(cls, out: Tensor, x: Tensor, parameters: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(out, x, grad)[0], *(None for _ in parameters)


class CountedTwice(OwnCheckpoint):
    """backward() has added the parameters' gradients already, and they are returned too."""

    @classmethod
    def gradients(cls, out: Tensor, x: Tensor, parameters: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        before = [parameter.grad for parameter in parameters]
        out.backward(grad)
        added = [now.grad if then is None else now.grad - then for now, then in zip(parameters, before, strict=True)]
        return x.grad, *added


class OfACopy(OwnCheckpoint):
    """The second run is a copy's, to leave the module's state alone: its parameters are others."""

    @staticmethod
    def second_module(ctx: Function) -> nn.Module:
        return copy.deepcopy(ctx.layer)

    @classmethod
    def gradients(cls, out: Tensor, x: Tensor, parameters: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
        out.backward(grad)
        return x.grad, *(None for _ in parameters)


class InEval(OwnCheckpoint):
    """The second run is in eval mode, so that statistics stay: dropout is off there."""

    @staticmethod
    def second_module(ctx: Function) -> nn.Module:
        return copy_sharing_parameters(ctx.layer).eval()


def copy_sharing_parameters(module: nn.Module) -> nn.Module:
    """Another module of the same parameters."""
    same = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, same)


class Compressed(OwnCheckpoint):
    """The input is kept in 8 bits of mantissa, and the second run begins with that."""

    @classmethod
    def kept(cls, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


class WithoutAutocast(OwnCheckpoint):
    """Runs again in whatever autocast backward has: none."""

    @staticmethod
    def autocast(ctx: Function) -> Any:
        return torch.autocast("cpu", enabled=False)


def function_run(function: type[OwnCheckpoint]) -> Run:
    """Runs a layer by it."""
    return lambda layer, x: function.apply(layer, x, *layer.parameters())


def in_autocast(function: type[OwnCheckpoint]) -> Run:
    """The layers' forward pass is in bf16 where it can be; backward is called outside, as torch advises."""

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function.apply(layer, x, *layer.parameters())

    return run


OFF = "the derivative is"
RIGHT = chain(Layer, function_run(OwnCheckpoint))
FAULTS = (
    Fault(
        "function-without-weights",
        "gradients",
        "layers.0.fc1.weight",
        chain(Layer, function_run(WithoutWeights)),
        RIGHT,
    ),
    Fault("function-of-a-copy", "gradients", "layers.0.fc1.weight", chain(Layer, function_run(OfACopy)), RIGHT),
    Fault("function-counts-twice", "differences", OFF, chain(Layer, function_run(CountedTwice)), RIGHT),
    Fault(
        "function-in-eval",
        "differences",
        OFF,
        chain(dropping, function_run(InEval)),
        chain(dropping, function_run(OwnCheckpoint)),
    ),
    Fault("function-compresses-input", "differences", OFF, chain(Layer, function_run(Compressed)), RIGHT),
    Fault(
        "function-without-autocast",
        "second run",
        "gives float32 in its second run, bfloat16 in forward",
        chain(Layer, in_autocast(WithoutAutocast)),
        chain(Layer, in_autocast(OwnCheckpoint)),
    ),
)
