"""Gradients that are lost or counted twice, and checkpointing that does nothing."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from corpus.architectures import by_name
from corpus.fault import Case, Chain, Fault, Layer, batch, chain, reentrant, region, without
from corpus.hugging_face import WAYS


class OfData(Chain):
    """The first region's input is data: it asks for no gradient."""

    def __init__(self, run: Any) -> None:
        super().__init__(Layer, run)
        self.embed = nn.Identity()


class Named(Layer):
    """Returns a dictionary, as many a model does; or a tensor."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"hidden": out} if self.named else out


def one_of_a_tuple(layer: Named, x: Tensor) -> Tensor:
    """The region returns a dictionary besides a tensor."""
    out = reentrant(lambda x: (x * 1.0, layer(x)), x)
    hidden = out[1]["hidden"] if layer.named else out[1]
    return out[0] + hidden


class HooksItsInput(Layer):
    """Halves the gradient of its input by a hook, which its second run sets again; or in the graph."""

    def __init__(self, hooks: bool) -> None:
        super().__init__()
        self.hooks = hooks

    def forward(self, x: Tensor) -> Tensor:
        if self.hooks:
            x.register_hook(lambda grad: grad / 2)
        else:
            x = x / 2 + x.detach() / 2
        return super().forward(x)


def mixtral(way: str) -> Case:
    """transformers' Mixtral with the loss that balances its experts."""
    return by_name("mixtral").case(WAYS[way])


class Flagged(Chain):
    """A flag that nobody reads, or reads in training alone, or only where the input asks for a gradient."""

    def __init__(self, read: str) -> None:
        super().__init__(Layer, without)
        self.read, self.gradient_checkpointing = read, True
        self.run = self.run_flagged

    def run_flagged(self, layer: nn.Module, x: Tensor) -> Tensor:
        return region(layer, x) if self.is_read(x) else layer(x)

    def is_read(self, x: Tensor) -> bool:
        """Whether the flag counts here."""
        return self.read == "always" or (self.read == "training" and self.training)


def in_eval() -> Case:
    """The flag is read in training mode alone, and the model was left in evaluation."""
    return Case(Flagged("training").eval(), batch())


def bypassed(around: bool) -> Case:
    """Layers in torch's checkpoint_wrapper, whose inner module is called; or the wrapper."""
    model = Chain(Layer, lambda layer, x: layer(x) if around else layer._checkpoint_wrapped_module(x))
    for number, layer in enumerate(model.layers):
        model.layers[number] = checkpoint_wrapper(layer)
    return Case(model, batch())


def keeping(*ops: Any) -> Any:
    """A selective checkpoint that keeps the results of these operators, all if there are none."""

    def policy(_: Any, op: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if not ops or op in ops else CheckpointPolicy.PREFER_RECOMPUTE

    return functools.partial(region, context_fn=functools.partial(create_selective_checkpoint_contexts, policy))


LOST = "without a gradient"
FAULTS = (
    Fault(
        "reentrant-of-data",
        "gradients",
        LOST,
        lambda: Case(OfData(reentrant), batch()),
        lambda: Case(OfData(region), batch()),
    ),
    Fault(
        "reentrant-returns-dict",
        "gradients",
        LOST,
        chain(lambda: Named(True), one_of_a_tuple),
        chain(lambda: Named(False), one_of_a_tuple),
    ),
    Fault(
        "hook-on-input",
        "same bits",
        "differs in",
        chain(lambda: HooksItsInput(True)),
        chain(lambda: HooksItsInput(False)),
    ),
    Fault(
        "router-loss-reentrant",
        "same bits",
        "differs in",
        functools.partial(mixtral, "reentrant"),
        functools.partial(mixtral, "non-reentrant"),
        needs="transformers",
    ),
    Fault(
        "flag-nobody-reads",
        "recomputes",
        "it recomputes nothing: gradient_checkpointing is set on 1 modules",
        lambda: Case(Flagged("never"), batch()),
        lambda: Case(Flagged("always"), batch()),
    ),
    Fault(
        "flag-in-eval", "recomputes", "the model is in eval mode", in_eval, lambda: Case(Flagged("training"), batch())
    ),
    Fault(
        "wrapper-bypassed",
        "recomputes",
        "it recomputes nothing: 2 modules are in a checkpoint_wrapper",
        functools.partial(bypassed, False),
        functools.partial(bypassed, True),
    ),
    Fault(
        "selective-keeps-all",
        "recomputes",
        "it recomputes nothing",
        chain(Layer, keeping()),
        chain(Layer, keeping(torch.ops.aten.exp.default)),
    ),
)
