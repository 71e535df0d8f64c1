"""From a config to a model that is ready to train, in the order in which the parts compose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megaselect.devices import check_compile, check_kernels, resolve_device, resolve_dtype
from megaselect.model.gpt import GPT
from megaselect.model.initialise import initialise
from megaselect.recompute.apply import apply_recompute
from megaselect.recompute.plan import make_plan
from megaselect.recompute.theory import check_saves

if TYPE_CHECKING:
    from megaselect.config import Config


def build_model(config: Config) -> GPT:
    """A GPT in training mode on the config's device and in its dtype; the weights depend on the seed alone.

    Raises DeviceError where the device or kernel backend is absent, RecomputeError for recompute settings that would
    save nothing.
    """
    device = resolve_device(config.training.device)
    check_kernels(config.model, device)
    if config.training.compile:
        check_compile(device)
    dtype = resolve_dtype(config.training.dtype, device)
    check_saves(config, dtype.itemsize)
    model = GPT(config.model, config.training.seed, config.training.loss_chunk_tokens)
    initialise(model, config.model.init_std, config.training.seed)  # before the cast: every dtype rounds the same draw
    model.to(device=device, dtype=dtype)
    apply_recompute(model, make_plan(config.recompute, config.model.num_layers), compiled=config.training.compile)
    return model
