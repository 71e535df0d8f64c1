"""Layernorm, and bias + dropout + residual + layernorm in one op, beside torch's eager operations.

Shapes: s sequence, b micro-batch, h hidden; x [s, b, h]. Bytes an element of e bytes, each tensor once, without
statistics and [h] vectors: layernorm 2e forward (x, out) and 3e backward (gradient, x, gradient of x); the fused op 4e
forward (x, residual; out, normed) and 5e backward (two gradients, out; gradients of x and residual), mask made anew.
Errors are against fp64 with the masks of the CPU's own mask function; the eager ones only without dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import references
from benchmarks.kernel_runs import SEED, Contender, copy_ceiling, dtype_of, measure, prepare
from benchmarks.runner import Bench, Case, Row
from megaselect.kernels.bias_dropout_residual_layer_norm import bias_dropout_residual_layer_norm
from megaselect.kernels.dropout_mask import Plane, drop_threshold, keep_hidden, keep_scale
from megaselect.kernels.layer_norm import layer_norm

OURS, EAGER = "Megaselect", "torch eager"
EPSILON = 1e-5
SITE = 4000


class Inputs(NamedTuple):
    """x, residual [s, b, h]; bias, weight, shift [h]; two gradients [s, b, h]. All but the gradients are leaves."""

    x: Tensor
    residual: Tensor
    bias: Tensor
    weight: Tensor
    shift: Tensor
    grad_out: Tensor
    grad_normed: Tensor

    def leaves(self) -> Inputs:
        """The same values, apart from other users' graphs."""
        return Inputs(*(tensor.detach().requires_grad_() for tensor in self[:5]), *self[5:])


def cases(bench: Bench, kernels: Sequence[str], dropouts: Sequence[float]) -> list[Case]:
    """kernels: of layernorm and bdrl."""
    seconds = bench.seconds + (12 if bench.on_gpu else 2)
    probabilities = ",".join(f"{p:g}" for p in dropouts)
    made = []
    if "bdrl" in kernels:
        made.append(Case(f"bdrl p={probabilities}", functools.partial(_run, "bdrl", tuple(dropouts)), seconds))
    if "layernorm" in kernels:
        made.append(Case("layernorm", functools.partial(_run, "layernorm", (0.0,)), seconds))
    return made


def _run(kernel: str, dropouts: Sequence[float], bench: Bench) -> list[Row]:
    sequence, batch, hidden = (2048, 16, 2048) if bench.on_gpu else (64, 4, 256)
    inputs = _inputs(sequence, batch, hidden, bench)
    makers = []
    for dropout_p in dropouts:
        for name in (OURS, EAGER):
            makers.append((name, dropout_p, functools.partial(_contenders, kernel, name, inputs, dropout_p)))
    contenders, failed = prepare(bench, makers)
    shape = {"kernel": kernel, "sequence": sequence, "batch": batch, "hidden": hidden}
    rows = measure(bench, [copy_ceiling(bench), *contenders], OURS, shape)
    return rows + [{**shape, "direction": "both", **row} for row in failed]


def _inputs(sequence: int, batch: int, hidden: int, bench: Bench) -> Inputs:
    generator = torch.Generator(bench.device).manual_seed(SEED)
    options = {"device": bench.device, "dtype": dtype_of(bench), "generator": generator}
    wide = [torch.randn(sequence, batch, hidden, **options) for _ in range(4)]
    narrow = [torch.randn(hidden, **options) for _ in range(3)]
    return Inputs(*wide[:2], *narrow, *wide[2:])


def _contenders(kernel: str, name: str, inputs: Inputs, dropout_p: float) -> list[Contender]:
    leaves = inputs.leaves()
    plane = Plane(SEED, SITE, drop_threshold(dropout_p))
    forward = functools.partial(_RUNS[kernel, name], leaves, plane, dropout_p)
    outputs = forward()
    wanted = list(leaves[:5]) if kernel == "bdrl" else [leaves.x, leaves.weight, leaves.shift]
    grads = [inputs.grad_out, inputs.grad_normed] if kernel == "bdrl" else [inputs.grad_normed]
    backward = functools.partial(torch.autograd.grad, outputs, wanted, grads, retain_graph=True)
    errors: tuple[float | None, float | None] = (None, None)
    if name == OURS or not dropout_p:
        errors = _errors(kernel, inputs, plane, outputs, backward())
    size = inputs.x.numel() * inputs.x.element_size()
    counts = (4, 5) if kernel == "bdrl" else (2, 3)
    return [
        Contender(name, "forward", dropout_p, forward, errors[0], bytes=counts[0] * size),
        Contender(name, "backward", dropout_p, backward, errors[1], bytes=counts[1] * size),
    ]


def _our_bdrl(inputs: Inputs, plane: Plane, _: float) -> tuple[Tensor, ...]:
    samples = torch.arange(inputs.x.shape[1], device=inputs.x.device)
    return bias_dropout_residual_layer_norm(
        inputs.x, inputs.bias, inputs.residual, inputs.weight, inputs.shift, samples, plane,
        epsilon=EPSILON, save_mask=False,
    )  # fmt: skip


def _eager_bdrl(inputs: Inputs, _: Plane, dropout_p: float) -> tuple[Tensor, ...]:
    out = inputs.residual + functional.dropout(inputs.x + inputs.bias, dropout_p)
    return out, functional.layer_norm(out, out.shape[-1:], inputs.weight, inputs.shift, EPSILON)


def _our_layernorm(inputs: Inputs, *_: object) -> tuple[Tensor, ...]:
    return (layer_norm(inputs.x, inputs.weight, inputs.shift, EPSILON),)


def _eager_layernorm(inputs: Inputs, *_: object) -> tuple[Tensor, ...]:
    return (functional.layer_norm(inputs.x, inputs.x.shape[-1:], inputs.weight, inputs.shift, EPSILON),)


_RUNS: dict[tuple[str, str], Callable[[Inputs, Plane, float], tuple[Tensor, ...]]] = {
    ("bdrl", OURS): _our_bdrl,
    ("bdrl", EAGER): _eager_bdrl,
    ("layernorm", OURS): _our_layernorm,
    ("layernorm", EAGER): _eager_layernorm,
}


def _errors(
    kernel: str, inputs: Inputs, plane: Plane, outputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[float, float]:
    """The largest relative error of the outputs, and of the gradients."""
    wide = Inputs(*(tensor.detach().double() for tensor in inputs)).leaves()
    out = wide.x
    if kernel == "bdrl":
        samples = torch.arange(inputs.x.shape[1])
        keep = keep_hidden(samples, plane, inputs.x.shape[0], inputs.x.shape[2]).to(inputs.x.device) != 0
        out = wide.residual + (wide.x + wide.bias) * keep * keep_scale(plane.threshold)
    normed = functional.layer_norm(out, out.shape[-1:], wide.weight, wide.shift, EPSILON)
    if kernel == "bdrl":
        exact, leaves, given = (out, normed), list(wide[:5]), [wide.grad_out, wide.grad_normed]
    else:
        exact, leaves, given = (normed,), [wide.x, wide.weight, wide.shift], [wide.grad_normed]
    exact_grads = torch.autograd.grad(exact, leaves, given)
    return tuple(
        max(references.relative_error(left.detach(), right.detach()) for left, right in zip(*pair, strict=True))
        for pair in ((outputs, exact), (grads, exact_grads))
    )
