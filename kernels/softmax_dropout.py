"""Causal softmax, dropout and the product with V as one differentiable op, with a plain-torch fallback of the kernel.

Shapes: b micro-batch, a heads, q query and k key positions (q = k = s without context parallelism), d head size.

    probs   = softmax(scores, causal)         [b, a, q, k], fp32 arithmetic, rounded to the compute dtype
    dropped = probs where kept, else 0        [b, a, q, k]
    context = keep_scale * (dropped @ value)  [q, b, a*d], the layout that the projection reads without a copy

The keep scale sits in the matrix product, which applies it in fp32 and for nothing. One op spans all three because a
separate product with V would make autograd keep the dropped probs. What it keeps instead is set by two flags:

    save_probs  save_mask    saved for backward (besides value and context)   bytes a score, 16 bit
    True         True          probs, mask, dropped                            5     `none`
    True         False         probs                                           2     `dropout`
    False        True          scores, row max, 1/row sum, mask                3     `softmax`
    False        False         scores, row max, 1/row sum                      2     `softmax` and `dropout`

All four give the same bits: recomputed probs come from the same function, the same scores and the same row statistics.
Backward (flash-attention's identity, Dao et al. 2022): with delta = rowsum(grad_context * context),
grad_scores = probs * (keep * keep_scale * (grad_context @ valueᵀ) - delta), so it is elementwise but for the products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.dropout_mask import Plane, keep_planes, keep_scale, signed_seed, unsigned_seed
from megaselect.kernels.fallback import LOG2_E, and_keep, wide_dtype


def softmax_dropout_value(
    scores: Tensor,
    value: Tensor,
    sample_index: Tensor,
    plane: Plane,
    *,
    save_probs: bool,
    save_mask: bool,
    backend: str = "auto",
) -> Tensor:
    """Context [q, b, a*d] from scores [b, a, q, k] (already scaled) and value [b, a, k, d]; sample_index int64 [b].

    plane.site is the site of head 0; offsets are the global positions of row and column 0 of the scores.
    Raises ValueError for a backend that cannot run here.
    """
    return torch.ops.megaselect.softmax_dropout_value(
        scores.contiguous(),  # here, so that it is also what backward gets: the kernels know no strides
        value,
        sample_index.contiguous(),
        signed_seed(plane.seed),
        *plane[1:],
        save_probs,
        save_mask,
        backend,
    )[0]


@custom_op("softmax_dropout_value")
def _forward(
    scores: Tensor,
    value: Tensor,
    sample_index: Tensor,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    save_probs: bool,
    save_mask: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(context, row_max, inverse_sum, probs, mask, dropped); what the flags do not keep is returned empty."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    arguments = (scores, sample_index, plane, save_probs and threshold > 0, save_mask and threshold > 0)
    dropped, row_max, inverse_sum, probs, mask = _kernels(backend, scores).forward(*arguments)
    context = _context(dropped, value, threshold)
    if save_probs:
        row_max, inverse_sum = scores.new_empty(0), scores.new_empty(0)
    if not save_probs or (threshold > 0 and not save_mask):
        dropped = scores.new_empty(0)
    return context, row_max, inverse_sum, probs, mask, dropped


@_forward.register_fake
def _(scores, value, sample_index, seed, site, threshold, row_offset, column_offset, save_probs, save_mask, backend):  # noqa: ANN001, ANN202
    batch, heads, rows, _ = scores.shape
    statistics_shape = (0,) if save_probs else (batch, heads, rows)
    statistics_dtype = scores.dtype if save_probs else wide_dtype(scores.dtype)
    statistics = [scores.new_empty(statistics_shape, dtype=statistics_dtype) for _ in "ml"]
    probs = scores.new_empty(scores.shape if save_probs and threshold > 0 else (0,))
    mask_shape = scores.shape if save_mask and threshold > 0 else (0,)
    mask = scores.new_empty(mask_shape, dtype=torch.int8)
    dropped = scores.new_empty(scores.shape if save_probs and (save_mask or threshold == 0) else (0,))
    return value.new_empty(rows, batch, heads * value.shape[-1]), *statistics, probs, mask, dropped


@custom_op("softmax_dropout_value_backward")
def _backward(
    grad_context: Tensor,
    context: Tensor,
    value: Tensor,
    sample_index: Tensor,
    scores: Tensor,
    row_max: Tensor,
    inverse_sum: Tensor,
    probs: Tensor,
    mask: Tensor,
    dropped: Tensor,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(grad_scores [b, a, q, k], grad_value [b, a, k, d]) from whichever tensors were kept; the others are empty."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    batch, heads, keys, head_size = value.shape
    rows = grad_context.shape[0]
    by_head = _by_head(grad_context, batch * heads)  # [b*a, q, d]
    flat_value = value.reshape(batch * heads, keys, head_size)
    grad_dropped = _scaled_product(by_head, flat_value.transpose(1, 2), keep_scale(threshold))
    grad_scores, recomputed = _kernels(backend, value).backward(
        grad_dropped.view(batch, heads, rows, keys),
        _row_dots(grad_context, context, batch, heads),
        sample_index,
        plane,
        scores=scores,
        row_max=row_max,
        inverse_sum=inverse_sum,
        probs=probs if probs.numel() else dropped,  # without dropout, dropped probs are the probs
        mask=mask,
        write_dropped=dropped.numel() == 0,
    )
    dropped = recomputed if dropped.numel() == 0 else dropped
    by_key = dropped.view(batch * heads, rows, keys).transpose(1, 2)
    grad_value = _scaled_product(by_key, by_head, keep_scale(threshold))
    return grad_scores, grad_value.view(batch, heads, keys, head_size)


@_backward.register_fake
def _(grad_context, context, value, *arguments):  # noqa: ANN001, ANN002, ANN202
    batch, heads, keys, head_size = value.shape
    return value.new_empty(batch, heads, grad_context.shape[0], keys), value.new_empty(batch, heads, keys, head_size)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    scores, value, sample_index, *scalars, save_probs, _, backend = inputs
    context, *kept = output
    empty = scores.new_empty(0)
    if scalars[2] == 0:  # without dropout nothing is a function of the sample
        sample_index = empty
    ctx.set_materialize_grads(False)  # else backward is handed zeros for every output that is kept
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(context, value, sample_index, empty if save_probs else scores, *kept)
    ctx.scalars = (*scalars, backend)


def _autograd_backward(ctx, grad_context, *_):  # noqa: ANN001, ANN002, ANN202
    if grad_context is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # read once: a second read fails under checkpoint
    grads = torch.ops.megaselect.softmax_dropout_value_backward(grad_context.contiguous(), *saved, *ctx.scalars)
    return (*grads, *(None,) * 9)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.megaselect.softmax_dropout_value)
def _forward_flops(scores_shape: torch.Size, value_shape: torch.Size, *_: object, **__: object) -> int:
    batch, heads, rows, keys = scores_shape
    return 2 * batch * heads * rows * keys * value_shape[-1]


@register_flop_formula(torch.ops.megaselect.softmax_dropout_value_backward)
def _backward_flops(grad_shape: torch.Size, _: object, value_shape: torch.Size, *__: object, **___: object) -> int:
    batch, heads, keys, head_size = value_shape
    return 2 * (2 * batch * heads * grad_shape[0] * keys * head_size)


def _kernels(backend: str, tensor: Tensor):  # noqa: ANN202
    resolved = resolve_backend(backend, tensor.device, tensor.dtype)
    if resolved == "triton":
        from megaselect.kernels import softmax_dropout_triton

        return softmax_dropout_triton
    if resolved == "numba":
        from megaselect.kernels import softmax_dropout_numba

        return softmax_dropout_numba
    return TorchFallback


def _context(dropped: Tensor, value: Tensor, threshold: int) -> Tensor:
    """keep_scale * (dropped @ value), written as [q, b, a*d]."""
    batch, heads, rows, keys = dropped.shape
    context = value.new_empty(rows, batch, heads * value.shape[-1])
    flat_value = value.reshape(batch * heads, keys, -1)
    out, planes = _by_head(context, batch * heads), dropped.view(-1, rows, keys)
    if context.device.type == "cpu":  # a batched product into strides runs plane by plane there, on one core
        out.copy_(_scaled_product(planes, flat_value, keep_scale(threshold)))
    else:
        torch.baddbmm(out, planes, flat_value, beta=0, alpha=keep_scale(threshold), out=out)
    return context


def _by_head(hidden: Tensor, planes: int) -> Tensor:
    """[s, b, a*d] seen as [b*a, s, d]: a view that the matrix products take as it is."""
    return hidden.view(hidden.shape[0], planes, -1).transpose(0, 1)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _row_dots(grad_context: Tensor, context: Tensor, batch: int, heads: int) -> Tensor:
    """delta [b, a, q] in fp32 (fp64 for fp64): the dot product of each head's gradient with its output."""
    products = grad_context.to(wide_dtype(context.dtype)) * context
    return products.view(context.shape[0], batch, heads, -1).sum(-1).permute(1, 2, 0).contiguous()


class TorchFallback:
    """The kernel's maths, saved tensors and rounding points in plain torch: for the CPU, and as a reference.

    Works through the planes in chunks that fit a core's cache, into buffers that are allocated once.
    """

    @staticmethod
    def forward(
        scores: Tensor, sample_index: Tensor, plane: Plane, save_probs: bool, save_mask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(dropped, row_max, inverse_sum, probs, mask) as the Triton kernel returns them."""
        wide = wide_dtype(scores.dtype)
        dropped, row_max = torch.empty_like(scores), scores.new_empty(scores.shape[:-1], dtype=wide)
        inverse_sum = torch.empty_like(row_max)
        probs = torch.empty_like(scores) if save_probs else dropped
        keep = _keep(scores, sample_index, plane) if plane.threshold else scores.new_empty(0, dtype=torch.int8)
        dead = _dead(scores, plane)
        for chunk in _chunks(scores):
            masked = torch.add(_flat(scores)[chunk], dead)
            highest = torch.amax(masked, -1, out=_flat(row_max)[chunk])
            highest.masked_fill_(highest == -torch.inf, 0)  # a row without a live column gives zeros, not NaN
            exponentials = _exponentials_(masked, highest)
            inverse = torch.sum(exponentials, -1, out=_flat(inverse_sum)[chunk]).reciprocal_()
            inverse.masked_fill_(inverse == torch.inf, 0)
            torch.mul(exponentials, inverse.unsqueeze(-1), out=_flat(probs)[chunk])  # fp32, rounded to the dtype
            if plane.threshold:
                and_keep(_flat(probs)[chunk], _flat(keep)[chunk], out=_flat(dropped)[chunk])
        empty, no_mask = scores.new_empty(0), scores.new_empty(0, dtype=torch.int8)
        return dropped, row_max, inverse_sum, probs if save_probs else empty, keep if save_mask else no_mask

    @staticmethod
    def backward(
        grad_dropped: Tensor,
        delta: Tensor,
        sample_index: Tensor,
        plane: Plane,
        *,
        scores: Tensor,
        row_max: Tensor,
        inverse_sum: Tensor,
        probs: Tensor,
        mask: Tensor,
        write_dropped: bool,
    ) -> tuple[Tensor, Tensor]:
        """(grad_scores, dropped or empty). grad_dropped is overwritten with grad_scores."""
        write_dropped &= plane.threshold > 0 or not probs.numel()
        dropped = torch.empty_like(grad_dropped) if write_dropped else probs
        keep = mask if mask.numel() or not plane.threshold else _keep(grad_dropped, sample_index, plane)
        dead = _dead(grad_dropped, plane)
        for chunk in _chunks(grad_dropped):
            if probs.numel():
                rounded = _flat(probs)[chunk]
            else:
                recomputed = _exponentials_(torch.add(_flat(scores)[chunk], dead), _flat(row_max)[chunk])
                rounded = recomputed.mul_(_flat(inverse_sum)[chunk].unsqueeze(-1)).to(scores.dtype)
            grad = _flat(grad_dropped)[chunk]
            if plane.threshold:
                and_keep(grad, _flat(keep)[chunk], out=grad)
                if write_dropped:
                    and_keep(rounded, _flat(keep)[chunk], out=_flat(dropped)[chunk])
            else:
                grad.tril_(plane.row_offset - plane.column_offset)  # 0 * inf above the diagonal would be NaN
                if write_dropped:
                    _flat(dropped)[chunk].copy_(rounded)
            difference = torch.sub(grad, _flat(delta)[chunk].unsqueeze(-1))  # fp32: delta is
            torch.mul(difference, rounded, out=grad)
        return grad_dropped, dropped


ELEMENTS_PER_CHUNK = 1 << 17


def _chunks(scores: Tensor) -> list[slice]:
    planes = scores.shape[0] * scores.shape[1]
    step = max(ELEMENTS_PER_CHUNK // max(scores.shape[2] * scores.shape[3], 1), 1)
    return [slice(start, min(start + step, planes)) for start in range(0, planes, step)]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1)


def _dead(scores: Tensor, plane: Plane) -> Tensor:
    """[q, k], 0 where column_offset + column <= row_offset + row, else -inf; fp32 (fp64 for fp64)."""
    dead = torch.full(scores.shape[-2:], -torch.inf, dtype=wide_dtype(scores.dtype), device=scores.device)
    return dead.triu_(plane.row_offset - plane.column_offset + 1)


def _exponentials_(masked: Tensor, row_max: Tensor) -> Tensor:
    """exp(masked - row_max) in place: subtract, multiply, exp2, as the kernel does, which a CPU also does fastest."""
    return masked.sub_(row_max.unsqueeze(-1)).mul_(LOG2_E).exp2_()


def _keep(like: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
    _, planes, rows, columns = like.shape
    return keep_planes(sample_index.cpu(), plane, planes, rows, columns, causal=True).to(like.device)
