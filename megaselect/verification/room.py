"""Whether a device has room for verifying a config: said before a model is built that would not fit."""

from __future__ import annotations

from megaselect.config import Config
from megaselect.devices import free_bytes, resolve_device, resolve_dtype
from megaselect.errors import VerificationError
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.prediction.weights import parameter_count
from megaselect.recomputation.plan import no_recompute
from megaselect.units import size

FP64_BYTES = 8


def check_room(config: Config) -> None:
    """Raises VerificationError where less is free than verifying holds at least: weights and two sets of gradients in
    the run's dtype, the same model and its gradients in fp64, and what `none` saves for backward.
    """
    device = resolve_device(config.training.device)
    element_bytes = resolve_dtype(config.training.dtype, device).itemsize
    shape, layers = LayerShape.of(config, element_bytes), config.model.num_layers
    each = 3 * element_bytes + 2 * FP64_BYTES
    needed = parameter_count(shape, layers) * each + saved_bytes(shape, no_recompute(layers))
    free = free_bytes(device)
    if needed > free:
        raise VerificationError(
            f"verifying holds at least {size(needed)}, and {size(free)} is free: take fewer layers "
            "(--model.num-layers 2), a smaller --training.micro-batch-size or a shorter --model.seq-length; "
            "megaselect estimate needs no room"
        )
