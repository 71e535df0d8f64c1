"""Whether a device has room for verifying a config: said before a model is built that would not fit."""

from __future__ import annotations

from megaselect.config import Config
from megaselect.devices import free_bytes, resolve_device, resolve_dtype
from megaselect.errors import VerificationError
from megaselect.recompute.plan import everything_kept
from megaselect.recompute.theory import Shape, stored_bytes
from megaselect.recompute.weights import parameter_count
from megaselect.units import size

FP64_BYTES = 8


def check_room(config: Config) -> None:
    """Raises VerificationError where less is free than verifying holds at least: weights and two sets of gradients in
    the run's dtype, the same model and its gradients in fp64, and what `none` keeps for backward.
    """
    device = resolve_device(config.training.device)
    element_bytes = resolve_dtype(config.training.dtype, device).itemsize
    shape, layers = Shape.of(config, element_bytes), config.model.num_layers
    each = 3 * element_bytes + 2 * FP64_BYTES
    needed = parameter_count(shape, layers) * each + stored_bytes(shape, everything_kept(layers))
    free = free_bytes(device)
    if needed > free:
        raise VerificationError(
            f"verifying holds at least {size(needed)}, and {size(free)} is free: take fewer layers "
            "(--model.num-layers 2), a smaller --training.micro-batch-size or a shorter --model.seq-length; "
            "megaselect estimate needs no room"
        )
