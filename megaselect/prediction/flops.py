"""Model FLOPs and hardware FLOPs of a step, exactly, by arithmetic. No torch.

Only matrix products count, 2 FLOPs a multiply-add, attention's s² products in full (not halved for causality), as in
Korthikanti et al. 2022 and Megatron-LM. Backward is twice forward. Hardware FLOPs add what a setting runs again:
softmax, dropout, layernorm and gelu hold no matrix product and add none; a loss in chunks computes the logits again.
The scores that flash-style attention recomputes inside its backward kernels are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.prediction.saved_bytes import LayerShape
from megaselect.recomputation.plan import RecomputePlan

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Flops:
    """FLOPs of one micro-batch. model: what the mathematics needs; hardware: what is done, recomputation included."""

    model: int
    hardware: int


def core_attention_flops(shape: LayerShape) -> int:
    """q kᵀ and probs v, forward: 4·b·s²·h."""
    return 4 * shape.batch * shape.sequence**2 * shape.hidden


def _recomputed_attention_flops(shape: LayerShape) -> int:
    """What core_attn runs again: both products; the scores' alone where a compiled layer keeps the context."""
    return core_attention_flops(shape) // 2 if shape.compiled else core_attention_flops(shape)


def layer_flops(shape: LayerShape) -> int:
    """Forward of one layer: qkv, core attention, projection, fc1 and fc2."""
    products = 3 * shape.hidden**2 + shape.hidden**2 + 2 * shape.hidden * shape.ffn
    return 2 * shape.tokens * products + core_attention_flops(shape)


def micro_batch_flops(shape: LayerShape, plan: RecomputePlan) -> Flops:
    """Forward and backward of one micro-batch under a plan."""
    head = 2 * shape.tokens * shape.hidden * shape.padded_vocab
    model = FORWARD_AND_BACKWARD * (len(plan.modules) * layer_flops(shape) + head)
    again = sum(chunk.count * layer_flops(shape) for chunk in plan.chunks if chunk.checkpointed)
    if shape.attention == "unfused":
        again += sum(_recomputed_attention_flops(shape) for modules in plan.modules if "core_attn" in modules)
    if shape.chunked_loss:
        again += head
    return Flops(model, model + again)
