"""Model FLOPs and hardware FLOPs of a step, exactly, by arithmetic. No torch.

Only matrix products count, 2 FLOPs a multiply-add, attention's s² products in full (not halved for causality), as in
Korthikanti et al. 2022 and Megatron-LM. Backward is twice forward. Hardware FLOPs add what a setting runs again:
softmax, dropout, layernorm and gelu hold no matrix product and add none; a loss in chunks computes the logits again.
The scores that flash-style attention recomputes inside its backward kernels are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.prediction.saved_bytes import LayerShape, products_again
from megaselect.recomputation.plan import RecomputePlan

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Flops:
    """FLOPs of one micro-batch. model: what the mathematics needs; hardware: what is done, recomputation included."""

    model: int
    hardware: int


def product_flops(shape: LayerShape) -> dict[str, int]:
    """Matrix product of a layer -> FLOPs of its forward."""
    wide = 2 * shape.batch * shape.sequence**2 * shape.hidden
    square = 2 * shape.tokens * shape.hidden**2
    outer = 2 * shape.tokens * shape.hidden * shape.ffn
    return {"qkv": 3 * square, "scores": wide, "context": wide, "projection": square, "fc1": outer, "fc2": outer}


def core_attention_flops(shape: LayerShape) -> int:
    """q kᵀ and probs v, forward: 4·b·s²·h."""
    products = product_flops(shape)
    return products["scores"] + products["context"]


def layer_flops(shape: LayerShape) -> int:
    """Forward of one layer."""
    return sum(product_flops(shape).values())


def recomputed_flops(shape: LayerShape, modules: frozenset[str]) -> int:
    """Of the products that a layer computes again when selective recomputes `modules`."""
    products = product_flops(shape)
    return sum(products[name] for name in products_again(shape, modules))


def micro_batch_flops(shape: LayerShape, plan: RecomputePlan) -> Flops:
    """Forward and backward of one micro-batch under a plan."""
    head = 2 * shape.tokens * shape.hidden * shape.padded_vocab
    model = FORWARD_AND_BACKWARD * (len(plan.modules) * layer_flops(shape) + head)
    again = sum(chunk.count * layer_flops(shape) for chunk in plan.chunks if chunk.checkpointed)
    again += sum(recomputed_flops(shape, modules) for modules in plan.modules)
    if shape.chunked_loss:
        again += head
    return Flops(model, model + again)
