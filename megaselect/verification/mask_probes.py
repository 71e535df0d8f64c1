"""The mask that a call of a dropout operator used, by value.

Masks are no operator's output in every setting, and a mask that is handed over is not yet a mask that is used. So the
call is made again with what it was handed of masks, sample indices, site and offsets, and with other values in place
of the activations: such that each element of the result is zero where its mask drops and nowhere else. Over a window
of positions (sites.py), whose probs are uniform, and for attention over one sample.

Shapes: b batch, w window positions, h hidden, a heads, d head size. Masks are bool, True where kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from megaselect.verification.dropout_sites import Site

Arguments = dict[str, Any]
Probe = Callable[[Callable[..., Any], Arguments, Site, int], Tensor]


def hidden_forward(call: Callable[..., Any], arguments: Arguments, site: Site, sample: int) -> Tensor:
    """[w, b, h]: ones come out of dropout alone, without bias and residual."""
    x = _window(arguments["x"], site)
    changed = {"x": torch.ones_like(x), "row_offset": arguments["row_offset"] + site.first}
    if "weight" in arguments:  # with the layernorm after it: neither is optional there
        changed |= {"bias": torch.zeros_like(arguments["bias"]), "residual": torch.zeros_like(x)}
    else:
        changed |= {"bias": None, "residual": None}
    return call(**arguments | changed)[0] != 0


def hidden_backward(call: Callable[..., Any], arguments: Arguments, site: Site, sample: int) -> Tensor:
    """[w, b, h]: the gradient of ones."""
    mask = _window(arguments["mask"], site) if arguments["mask"].numel() else arguments["mask"]
    like = _window(arguments["out"] if "out" in arguments else arguments["grad_out"], site)
    changed = {"mask": mask, "grad_out": torch.ones_like(like), "row_offset": arguments["row_offset"] + site.first}
    if "grad_normed" not in arguments:
        return call(**arguments | changed) != 0
    statistics = _window(arguments["mean"], site)
    zeros = torch.zeros_like(like)
    changed |= {"grad_normed": zeros, "out": zeros, "mean": torch.zeros_like(statistics)}
    return call(**arguments | changed | {"rstd": torch.ones_like(statistics)})[0] != 0


def unfused_forward(call: Callable[..., Any], arguments: Arguments, site: Site, sample: int) -> Tensor:
    """[a, w, w]: a value that is one at one key for each of its channels brings those keys' dropped probs out."""
    head_size, size = arguments["value"].shape[-1], site.positions
    scores = arguments["scores"].new_zeros(1, site.heads, size, size)
    kept = torch.empty(site.heads, size, size, dtype=torch.bool, device=scores.device)
    for keys, one_hot in _blocks(scores, size, head_size):
        value = one_hot.expand(1, site.heads, -1, -1).contiguous()
        changed = {"scores": scores, "value": value, **_one_sample(arguments, sample), **_offsets(arguments, site)}
        context = call(**arguments | changed)[0].view(size, site.heads, head_size)
        kept[:, :, keys] = (context != 0).transpose(0, 1)[:, :, : keys.stop - keys.start]
    return kept


def unfused_backward(call: Callable[..., Any], arguments: Arguments, site: Site, sample: int) -> Tensor:
    """[2, a, w, w]: as the gradients of the scores, and of the value, have it.

    A gradient that is one in one row for each of its channels brings out the probs of those rows, for all keys.
    """
    head_size, size = arguments["value"].shape[-1], site.positions
    changed = _uniform_probs(arguments, site, sample) | _one_sample(arguments, sample) | _offsets(arguments, site)
    value = arguments["value"].new_ones(1, site.heads, size, head_size)
    kept = torch.empty(2, site.heads, size, size, dtype=torch.bool, device=value.device)
    for rows, one_hot in _blocks(value, size, head_size):
        grad = one_hot.unsqueeze(1).expand(-1, site.heads, -1).reshape(size, 1, site.heads * head_size)
        changed |= {"grad_context": grad, "context": torch.zeros_like(grad), "value": value}
        grad_scores, grad_value = call(**arguments | changed)
        kept[0, :, rows] = grad_scores[0, :, rows] != 0
        kept[1, :, rows] = (grad_value[0] != 0).transpose(1, 2)[:, : rows.stop - rows.start]
    return kept


def _uniform_probs(arguments: Arguments, site: Site, sample: int) -> Arguments:
    """What stands for scores, statistics and probs: uniform probs, in whichever of them the call was handed.

    Masks stay, and so do dropped probs that were kept, but for those that are zero without being dropped.
    """
    size, heads = site.positions, site.heads
    like = arguments["value"]
    seen = torch.arange(1, size + 1, device=like.device, dtype=torch.float64)
    uniform = seen.reciprocal().unsqueeze(-1).expand(size, size).tril().expand(1, heads, size, size)
    zeros, statistics = like.new_zeros(1, heads, size, size), seen.expand(1, heads, size)
    changed = {
        "scores": zeros,
        "row_max": torch.zeros_like(statistics).to(arguments["row_max"].dtype),
        "inverse_sum": statistics.reciprocal().to(arguments["inverse_sum"].dtype),
        "probs": uniform.to(like.dtype).contiguous(),
    }
    changed = {name: tensor for name, tensor in changed.items() if arguments[name].numel()}
    window = slice(site.first, site.first + size)
    kept = {
        name: arguments[name][sample : sample + 1, :, window, window].contiguous()
        for name in ("probs", "mask", "dropped")
        if arguments[name].numel()
    }
    if "mask" in kept:
        changed["mask"] = kept["mask"]
    if "dropped" in kept:
        changed["dropped"] = torch.where(kept["probs"] == 0, kept["mask"].to(like.dtype), kept["dropped"])
    return changed


def fused_forward(call: Callable[..., Any], arguments: Arguments, site: Site, sample: int) -> Tensor:
    """[a, w, w], as unfused_forward."""
    head_size, size = arguments["qkv"].shape[-1], site.positions
    qkv = arguments["qkv"].new_zeros(size, 1, *arguments["qkv"].shape[2:])
    kept = torch.empty(site.heads, size, size, dtype=torch.bool, device=qkv.device)
    changed = _one_sample(arguments, sample) | _offsets(arguments, site)
    for keys, one_hot in _blocks(qkv, size, head_size):
        qkv[:, 0, :, -1] = one_hot.unsqueeze(1)
        context = call(**arguments | changed | {"qkv": qkv})[0].view(size, site.heads, head_size)
        kept[:, :, keys] = (context != 0).transpose(0, 1)[:, :, : keys.stop - keys.start]
    return kept


def fused_backward(call: Callable[..., Any], arguments: Arguments, site: Site, sample: int) -> Tensor:
    """[2, a, w, w]: as the gradients of the query, and of the value, have it; they come from two kernels."""
    head_size, size = arguments["qkv"].shape[-1], site.positions
    qkv = arguments["qkv"].new_zeros(size, 1, *arguments["qkv"].shape[2:])
    qkv[:, :, :, -1] = 1
    seen = torch.arange(1, size + 1, device=qkv.device, dtype=arguments["log_sum_exp"].dtype)
    ones = qkv.new_ones(size, 1, site.heads * head_size)
    changed = _one_sample(arguments, sample) | _offsets(arguments, site)
    changed |= {"context": torch.zeros_like(ones), "log_sum_exp": seen.log2().expand(1, site.heads, size).contiguous()}
    kept = torch.empty(2, site.heads, size, size, dtype=torch.bool, device=qkv.device)
    for block, one_hot in _blocks(qkv, size, head_size):
        length = block.stop - block.start
        with_keys = qkv.clone()
        with_keys[:, 0, :, -2] = one_hot.unsqueeze(1)
        grads = call(**arguments | changed | {"grad_context": ones, "qkv": with_keys})
        kept[0, :, :, block] = (grads[:, 0, :, 0, :length] != 0).transpose(0, 1)
        by_row = one_hot.unsqueeze(1).expand(-1, site.heads, -1).reshape(ones.shape)
        grads = call(**arguments | changed | {"grad_context": by_row, "qkv": qkv})
        kept[1, :, block] = (grads[:, 0, :, -1, :length] != 0).permute(1, 2, 0)
    return kept


def _blocks(like: Tensor, size: int, head_size: int) -> Iterator[tuple[slice, Tensor]]:
    """(positions, [w, d] that is one at the d-th of these positions in channel d) until all w are done."""
    for start in range(0, size, head_size):
        stop = min(start + head_size, size)
        one_hot = like.new_zeros(size, head_size)
        one_hot[start:stop].fill_diagonal_(1)
        yield slice(start, stop), one_hot


def _one_sample(arguments: Arguments, sample: int) -> Arguments:
    return {"sample_index": arguments["sample_index"][sample : sample + 1].contiguous()}


def _offsets(arguments: Arguments, site: Site) -> Arguments:
    return {name: arguments[name] + site.first for name in ("row_offset", "column_offset")}


def _window(tensor: Tensor, site: Site) -> Tensor:
    return tensor[site.first : site.first + site.positions].contiguous()
