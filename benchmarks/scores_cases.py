"""K1, softmax and dropout of scores that stay in memory, as a share of a copy's bandwidth, beside torch's eager chain.

Selective's path: nothing is saved but scores and row statistics. Bytes are counted per element of the s*s scores, e
bytes an element, the dead half of which is written as zeros and never read: forward 1.5e (3 in 16 bit), backward 3e (6:
half of scores and half of the gradient read, gradient and dropped probs written). Row statistics are left out. The head
size does not enter. On a GPU there are 2²⁸ scores at every s.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import references
from benchmarks.kernel_runs import SEED, Contender, copy_ceiling, dtype_of, measure, prepare
from benchmarks.runner import Bench, Case, Row
from megaselect.kernels import softmax_dropout
from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.dropout_mask import Plane, drop_threshold

OURS, CHAIN = "K1", "torch chain"
SCALE = 64**-0.5  # of the chain: K1 gets scaled scores, from the product that makes them


def cases(bench: Bench, sequences: Sequence[int], dropouts: Sequence[float]) -> list[Case]:
    """One case a sequence length; all dropout probabilities take turns within it."""
    probabilities = ",".join(f"{p:g}" for p in dropouts)
    seconds = bench.seconds + (20 if bench.on_gpu else 2)
    return [
        Case(f"K1 s={sequence} p={probabilities}", functools.partial(_run, sequence, tuple(dropouts)), seconds)
        for sequence in sequences
    ]


def _run(sequence: int, dropouts: Sequence[float], bench: Bench) -> list[Row]:
    heads = max((1 << (28 if bench.on_gpu else 20)) // sequence**2, 1)
    generator = torch.Generator(bench.device).manual_seed(SEED)
    options = {"device": bench.device, "dtype": dtype_of(bench), "generator": generator}
    scores, grad = (torch.randn(1, heads, sequence, sequence, **options) for _ in range(2))
    makers = []
    for dropout_p in dropouts:
        makers.append((OURS, dropout_p, functools.partial(_ours, scores, grad, dropout_p)))
        makers.append((CHAIN, dropout_p, functools.partial(_chain_runs, scores, grad, dropout_p)))
    contenders, failed = prepare(bench, makers)
    shape = {"kernel": "K1", "sequence": sequence, "heads": heads}
    rows = measure(bench, [copy_ceiling(bench), *contenders], OURS, shape)
    return rows + [{**shape, "direction": "both", **row} for row in failed]


def _ours(scores: Tensor, grad: Tensor, dropout_p: float) -> list[Contender]:
    kernels = _kernels(scores)
    plane = Plane(SEED, 0, drop_threshold(dropout_p))
    samples = torch.zeros(1, dtype=torch.int64, device=scores.device)
    dropped, row_max, inverse_sum, probs, mask = kernels.forward(scores, samples, plane, False, False)
    delta = torch.sum(dropped * grad, -1, dtype=torch.float32)
    kept = {"scores": scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": probs, "mask": mask}

    def backward(overwritten: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.backward(overwritten, delta, samples, plane, **kept, write_dropped=True)

    grad_scores = backward(grad.clone())[0]
    planes = [tensor[0, -1] for tensor in (scores, dropped, grad, delta, grad_scores)]
    errors = references.softmax_dropout_errors(*planes, plane, scores.shape[1] - 1)
    del dropped, grad_scores, planes
    # Timed backward overwrites one gradient again and again, as training does: delta is not 0, so it does not fade.
    runs = (lambda: kernels.forward(scores, samples, plane, False, False)), functools.partial(backward, grad.clone())
    size = scores.numel() * scores.element_size()
    return [
        Contender(OURS, "forward", dropout_p, runs[0], errors[0], bytes=3 * size // 2),
        Contender(OURS, "backward", dropout_p, runs[1], errors[1], bytes=3 * size),
    ]


def _chain_runs(scores: Tensor, grad: Tensor, dropout_p: float) -> list[Contender]:
    """Scale, mask, softmax and dropout, one torch operation each."""
    leaf = (scores / SCALE).detach().requires_grad_()
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)

    def forward() -> Tensor:
        probs = (leaf * SCALE).masked_fill(future, -torch.inf).softmax(-1)
        return functional.dropout(probs, dropout_p) if dropout_p else probs

    out = forward()
    backward = functools.partial(torch.autograd.grad, out, leaf, grad, retain_graph=True)
    errors: tuple[float | None, float | None] = (None, None)
    if not dropout_p:
        delta = torch.sum(out.detach() * grad, -1, dtype=torch.float32)
        grad_scores = backward()[0] / SCALE
        planes = [tensor[0, -1] for tensor in (scores, out.detach(), grad, delta, grad_scores)]
        errors = references.softmax_dropout_errors(*planes, Plane(SEED, 0, 0), scores.shape[1] - 1)
    return [
        Contender(CHAIN, "forward", dropout_p, forward, errors[0]),
        Contender(CHAIN, "backward", dropout_p, backward, errors[1]),
    ]


def _kernels(tensor: Tensor) -> Any:
    """The Triton kernels on a GPU, their torch fallback elsewhere: the same two functions."""
    if resolve_backend("auto", tensor.device) != "triton":
        return softmax_dropout.TorchFallback
    from megaselect.kernels import softmax_dropout_triton

    return softmax_dropout_triton
