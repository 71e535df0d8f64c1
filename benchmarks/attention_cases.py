"""K2, our flash-style attention, beside what torch has for causal attention with dropout.

Shapes: s sequence, b micro-batch, a heads, d head size. On a GPU b*s = 16384 and a*d = 2048. FLOPs count the live half
of the scores: forward 2*b*a*s²*d (two products), backward 5*b*a*s²*d (five), whatever a kernel really does.
Errors are of the last head of the last sample; those of others only without dropout, as their masks are their own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import references
from benchmarks.kernel_runs import SEED, Contender, dtype_of, matmul_ceiling, measure, prepare
from benchmarks.runner import Bench, Case, Row
from megaselect.kernels.attention import fused_attention
from megaselect.kernels.dropout_mask import Plane, drop_threshold

OURS = "K2"
FLASH, DETERMINISTIC, CUDNN = "SDPA flash", "SDPA flash, determ.", "SDPA cuDNN"
EFFICIENT, FLEX, CHAIN, SDPA = "SDPA efficient", "FlexAttention", "torch chain", "SDPA"
LONGEST_CHAIN = 4096  # beyond it the chain's s² tensors do not fit beside each other

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Problem:
    """qkv [s, b, a, 3, d] and the context's gradient [s, b, a*d], random."""

    qkv: Tensor
    grad: Tensor

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self.qkv.shape[-1] ** -0.5

    @property
    def forward_flops(self) -> int:
        """Of the live half."""
        sequence, batch, heads, _, head_size = self.qkv.shape
        return 2 * batch * heads * sequence**2 * head_size

    def split(self) -> list[Tensor]:
        """query, key, value as contiguous leaves [b, a, s, d]: the form that others take best."""
        parts = self.qkv.permute(3, 1, 2, 0, 4).unbind(0)
        return [part.contiguous().detach().requires_grad_() for part in parts]

    def split_grad(self) -> Tensor:
        """[b, a, s, d]"""
        return self.grad.view(*self.qkv.shape[:3], -1).permute(1, 2, 0, 3).contiguous()

    def reference(self, plane: Plane) -> references.AttentionReference:
        """Of the last head of the last sample, whose sample index is b - 1."""
        sequence, batch, heads, _, head_size = self.qkv.shape
        query, key, value = self.qkv[:, -1, -1].unbind(1)
        grad = self.grad.view(sequence, batch, heads, head_size)[:, -1, -1]
        return references.attention(query, key, value, grad, self.scale, plane, heads - 1, batch - 1)


def cases(
    bench: Bench,
    sequences: Sequence[int],
    head_sizes: Sequence[int],
    dropouts: Sequence[float],
    baselines: Sequence[str],
) -> list[Case]:
    """One case a sequence length and head size; all dropout probabilities take turns within it."""
    made = []
    for head_size in head_sizes:
        for sequence in sequences:
            key = f"K2 d={head_size} s={sequence} p={','.join(f'{p:g}' for p in dropouts)} [{len(baselines)} baselines]"
            run = functools.partial(_run, sequence, head_size, tuple(dropouts), tuple(baselines))
            made.append(Case(key, run, bench.seconds + (25 if bench.on_gpu else 3), ",".join(baselines)))
    return made


def baselines_of(bench: Bench, all_of_them: bool = True) -> list[str]:
    """Names of the baselines that the device has."""
    if not bench.on_gpu:
        return [SDPA, CHAIN]
    return [FLASH, DETERMINISTIC, CUDNN, *([EFFICIENT, CHAIN, FLEX] if all_of_them else [])]


def _run(sequence: int, head_size: int, dropouts: Sequence[float], baselines: Sequence[str], bench: Bench) -> list[Row]:
    tokens, hidden = (16384, 2048) if bench.on_gpu else (max(sequence, 512), 2 * head_size)
    batch, heads = max(tokens // sequence, 1), hidden // head_size
    generator = torch.Generator(bench.device).manual_seed(SEED)
    options = {"device": bench.device, "dtype": dtype_of(bench), "generator": generator}
    qkv = torch.randn(sequence, batch, heads, 3, head_size, **options)
    problem = Problem(qkv, torch.randn(sequence, batch, heads * head_size, **options))
    exact = problem.reference(Plane(SEED, 0, 0))
    makers = []
    for dropout_p in dropouts:
        makers.append((OURS, dropout_p, functools.partial(_ours, problem, dropout_p)))
        for name in baselines:
            if (name == FLEX and dropout_p) or (name == CHAIN and sequence > LONGEST_CHAIN):
                continue
            makers.append((name, dropout_p, functools.partial(_baseline, problem, name, dropout_p, exact)))
    contenders, failed = prepare(bench, makers)
    shape = {"kernel": "K2", "sequence": sequence, "head_size": head_size, "batch": batch, "heads": heads}
    rows = measure(bench, [matmul_ceiling(bench), *contenders], OURS, shape)
    return rows + [{**shape, "direction": "both", **row} for row in failed]


def _ours(problem: Problem, dropout_p: float) -> list[Contender]:
    plane = Plane(SEED, 0, drop_threshold(dropout_p))
    leaf = problem.qkv.detach().requires_grad_()
    samples = torch.arange(leaf.shape[1], device=leaf.device)

    def forward() -> Tensor:
        return fused_attention(leaf, samples, plane, scale=problem.scale)

    out = forward()
    exact = problem.reference(plane)
    (grad_qkv,) = torch.autograd.grad(out, leaf, problem.grad, retain_graph=True)
    context = out.view(*leaf.shape[:3], -1)[:, -1, -1]
    errors = _errors(exact, context, grad_qkv[:, -1, -1].unbind(1))
    backward = functools.partial(torch.autograd.grad, out, leaf, problem.grad, retain_graph=True)
    return _pair(OURS, dropout_p, problem, forward, backward, errors)


def _baseline(problem: Problem, name: str, dropout_p: float, exact: references.AttentionReference) -> list[Contender]:
    leaves, grad = problem.split(), problem.split_grad()
    attend = _attend(name, problem.scale)
    determinism = _deterministic if name == DETERMINISTIC else contextlib.nullcontext

    def forward() -> Tensor:
        return attend(*leaves, dropout_p)

    out = forward()

    def backward() -> tuple[Tensor, ...]:
        with determinism():
            return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    errors: tuple[float | None, float | None] = (None, None)
    if not dropout_p:
        errors = _errors(exact, out[-1, -1], [part[-1, -1] for part in backward()])
    pair = _pair(name, dropout_p, problem, forward, backward, errors)
    return pair[1:] if name == DETERMINISTIC else pair  # its forward is the other's


def _pair(
    name: str,
    dropout_p: float,
    problem: Problem,
    forward: Callable[[], object],
    backward: Callable[[], object],
    errors: tuple[float | None, float | None],
) -> list[Contender]:
    flops = problem.forward_flops
    return [
        Contender(name, "forward", dropout_p, forward, errors[0], flops=flops),
        Contender(name, "backward", dropout_p, backward, errors[1], flops=5 * flops // 2),
    ]


def _errors(
    exact: references.AttentionReference, context: Tensor, grads: Sequence[Tensor]
) -> tuple[float, float]:  # fmt: skip
    """Of the context, and the largest of the three gradients'."""
    backward = [references.relative_error(grad, right) for grad, right in zip(grads, exact[1:], strict=True)]
    return references.relative_error(context, exact.context), max(backward)


def _attend(name: str, scale: float) -> Attend:
    """attend(query, key, value, dropout_p), all [b, a, s, d]."""
    if name == CHAIN:
        return functools.partial(_chain, scale)
    if name == FLEX:
        return _flex_attention(scale)
    backends = {FLASH: SDPBackend.FLASH_ATTENTION, DETERMINISTIC: SDPBackend.FLASH_ATTENTION}
    backends |= {CUDNN: SDPBackend.CUDNN_ATTENTION, EFFICIENT: SDPBackend.EFFICIENT_ATTENTION}

    def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
        with sdpa_kernel(backends[name]) if name in backends else contextlib.nullcontext():
            return functional.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout_p, is_causal=True, scale=scale
            )

    return attend


def _chain(scale: float, query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Scale, mask, softmax, dropout and two products, one torch operation each."""
    future = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).triu_(1)
    probs = ((query @ key.transpose(-2, -1)) * scale).masked_fill(future, -torch.inf).softmax(-1)
    return functional.dropout(probs, dropout_p) @ value


def _flex_attention(scale: float) -> Attend:
    """Compiled, with its block mask made once."""
    import torch._functorch.config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    masks: dict[int, object] = {}

    def attend(query: Tensor, key: Tensor, value: Tensor, _: float) -> Tensor:
        length = query.shape[2]
        if length not in masks:
            masks[length] = create_block_mask(_causal, None, None, length, length, device=query.device)
        with torch._functorch.config.patch(donated_buffer=False):  # backward is timed again and again on one graph
            return compiled(query, key, value, block_mask=masks[length], scale=scale)

    return attend


def _causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return row >= column


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms without filling fresh memory, which would be charged to the kernel.

    With warn_only torch's flash backward warns and stays as it is.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
