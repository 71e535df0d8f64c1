"""Predicted time of a micro-batch, from FLOPs and bytes moved, and an assumption about the device. No torch.

Matrix products run at a share of the device's peak, everything else at a share of its memory bandwidth; nothing
overlaps. That is a model, not a measurement: it says so wherever it is shown. `megaselect compare` measures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from megaselect.gpus import Gpu
from megaselect.prediction.flops import core_attention_flops, micro_batch_flops, recomputed_flops
from megaselect.prediction.saved_bytes import FP32_BYTES, LayerShape, layer_tensors, remade_bytes
from megaselect.recomputation.plan import RecomputePlan

PRODUCT_EFFICIENCY = 0.55
BANDWIDTH_EFFICIENCY = 0.75
CPU_FLOPS_PER_CORE = 50e9
CPU_BYTES_PER_S = 10e9
BYTES_A_PARAMETER_IN_ADAMW = 30  # read gradient 4; read and write master 8 and moments 16; write the weight 2
PICOSECONDS = 10**12


@dataclass(frozen=True)
class DeviceSpeed:
    """What a device is assumed to reach."""

    flops: float
    bytes_per_s: float
    assumption: str

    def seconds(self, flops: float, moved_bytes: float) -> float:
        """Products, then everything else."""
        return flops / self.flops + moved_bytes / self.bytes_per_s


def gpu_speed(gpu: Gpu, element_bytes: int) -> DeviceSpeed:
    """A share of the data sheet; fp32 products at an eighth of the 16-bit peak."""
    flops = gpu.flops_16_bit * PRODUCT_EFFICIENCY / (1 if element_bytes == 2 else 8)
    share = f"products at {PRODUCT_EFFICIENCY:.0%} of {gpu.flops_16_bit / 1e12:g} TFLOP/s"
    if element_bytes != 2:
        share += " / 8 in fp32"
    text = f"{share}, the rest at {BANDWIDTH_EFFICIENCY:.0%} of {gpu.bytes_per_s / 1e12:g} TB/s, nothing overlapped"
    return DeviceSpeed(flops, gpu.bytes_per_s * BANDWIDTH_EFFICIENCY, text)


def cpu_speed() -> DeviceSpeed:
    """A guess for any CPU."""
    cores = os.cpu_count() or 1
    text = (
        f"{cores} CPU cores of {CPU_FLOPS_PER_CORE / 1e9:g} GFLOP/s and {CPU_BYTES_PER_S / 1e9:g} GB/s, "
        "a guess for any CPU"
    )
    return DeviceSpeed(cores * CPU_FLOPS_PER_CORE, CPU_BYTES_PER_S, text)


def layer_moved_bytes(shape: LayerShape, modules: frozenset[str]) -> int:
    """What the ops between the matrix products of a layer read and write in forward and backward."""
    hidden, ffn = shape.hidden_bytes, shape.ffn_bytes
    moved = (2 + 4) * hidden  # first layernorm: forward; backward with the sum of the residual's gradient
    moved += (5 + 6) * hidden  # bias, dropout, residual and second layernorm
    moved += (3 + 2) * hidden  # the MLP's dropout and residual
    moved += (2 + 3) * ffn  # gelu
    moved += 2 * remade_bytes(shape, modules)
    return moved + (_softmax_moved_bytes(shape, modules) if shape.attention == "unfused" else 0)


def _softmax_moved_bytes(shape: LayerShape, modules: frozenset[str]) -> int:
    """Scores in and dropped probs out; kept probs and masks written and read; in backward a gradient in and out."""
    kept, wide = layer_tensors(shape, modules), shape.scores_bytes
    moved = (2 + 3) * wide
    dropped = "dropped probs" in kept or ("probs" in kept and not shape.attention_dropout)
    moved += wide if "dropped probs" in kept or ("probs" in kept and shape.attention_dropout) else 0
    moved += 0 if dropped else wide
    return moved + 2 * kept.get("attention dropout mask", 0)


def layer_picoseconds(shape: LayerShape, modules: frozenset[str], speed: DeviceSpeed) -> int:
    """What a layer's recomputation of `modules` costs beyond keeping everything; negative where writing and reading
    what is kept takes longer than making it again.
    """
    moved = layer_moved_bytes(shape, modules) - layer_moved_bytes(shape, frozenset())
    return round(PICOSECONDS * speed.seconds(recomputed_flops(shape, modules) / shape.tensor_parallel, moved))


def micro_batch_seconds(shape: LayerShape, plan: RecomputePlan, speed: DeviceSpeed) -> float:
    """Forward and backward of one micro-batch through the whole model, of which a rank computes 1/t."""
    layers = len(plan.modules)
    flops: float = micro_batch_flops(shape, plan).hardware
    if shape.attention != "unfused":  # half of the tiles are dead; backward makes the scores again: 7 products for 6
        flops -= (3 - 3.5 / 2) * layers * core_attention_flops(shape)
    moved = sum(layer_moved_bytes(shape, modules) for modules in plan.modules)
    again = sum(chunk.count for chunk in plan.chunks if chunk.checkpointed)
    moved += again * layer_moved_bytes(shape, frozenset()) // 3
    moved += 4 * shape.logits_bytes + 4 * shape.hidden_bytes * FP32_BYTES
    return speed.seconds(flops / shape.tensor_parallel, moved)


def optimizer_seconds(parameters: int, speed: DeviceSpeed) -> float:
    """AdamW over a rank's parameters."""
    return speed.seconds(0, parameters * BYTES_A_PARAMETER_IN_ADAMW)
