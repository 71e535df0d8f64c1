"""What others offer in place of megaselect.recompute, put on a model of anybody's as their documentation has it."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from megaselect.comparison.model_rows import HUGGING_FACE, SAC, TORCH_REMAT
from megaselect.devices import is_out_of_memory
from megaselect.errors import as_line
from megaselect.ledger.layer_paths import layer_paths

Function = Callable[..., Any]
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm")
_ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
_NAMES = (*_PRODUCTS, *(f"_scaled_dot_product_{kind}" for kind in _ATTENTION))
SAVED_BY_SAC = [getattr(torch.ops.aten, name).default for name in _NAMES if hasattr(torch.ops.aten, name)]


class PeerAbsentError(Exception):
    """A peer that is not there: not installed, or not made for this model."""


def apply_peer(name: str, model: nn.Module) -> None:
    """Have the model recompute as the peer does. Raises PeerAbsentError."""
    {HUGGING_FACE: _hugging_face, SAC: _sac, TORCH_REMAT: _torch_remat}[name](model)


def _hugging_face(model: nn.Module) -> None:
    enable: Any = getattr(model, "gradient_checkpointing_enable", None)
    if not callable(enable):
        raise PeerAbsentError(f"{type(model).__name__} has no gradient_checkpointing_enable")
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # the method is to get another name
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except Exception as error:  # transformers raises ValueError for a model that it cannot checkpoint, others theirs
        if is_out_of_memory(error):
            raise
        raise PeerAbsentError(as_line(error)) from error


def _sac(model: nn.Module) -> None:
    contexts = functools.partial(create_selective_checkpoint_contexts, SAVED_BY_SAC)

    def around(forward: Function) -> Function:
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            function = functools.partial(forward, **kwargs)  # whose keywords may be checkpoint's own
            return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

        return checkpointed

    _wrap_layers(model, around)


def _torch_remat(model: nn.Module) -> None:
    try:
        torch_remat = importlib.import_module("torch_remat")
    except ImportError as error:
        raise PeerAbsentError("the package torch_remat is not installed") from error
    devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}

    def around(forward: Function) -> Function:
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            function = functools.partial(forward, **kwargs)
            return torch_remat.checkpoint(recompute_state_hooks=(_RandomState(devices),))(function)(*args)

        return checkpointed

    _wrap_layers(model, around)


class _RandomState:
    """A state hook as torch_remat's documentation has it: of itself it puts no random state back."""

    def __init__(self, devices: set[torch.device]) -> None:
        self.devices = devices

    def snapshot(self) -> tuple[Tensor, dict[torch.device, Tensor]]:
        """The states of the CPU and the GPUs."""
        return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in self.devices}

    def restore(self, states: tuple[Tensor, dict[torch.device, Tensor]]) -> None:
        """Put them back."""
        torch.set_rng_state(states[0])
        for device, state in states[1].items():
            torch.cuda.set_rng_state(state, device)


def _wrap_layers(model: nn.Module, around: Callable[[Function], Function]) -> None:
    layers = sorted(set(layer_paths(model).values()) - {""})
    if not layers:
        raise PeerAbsentError(f"{type(model).__name__} has no list of alike modules, the layers that it goes around")
    for path in layers:
        layer: Any = model.get_submodule(path)
        layer.forward = around(layer.forward)
