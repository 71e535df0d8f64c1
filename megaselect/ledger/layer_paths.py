"""Which layer each module of any model belongs to."""

from __future__ import annotations

from torch import nn


def layer_paths(model: nn.Module) -> dict[str, str]:
    """Path of a module -> path of the layer that it is or lies in, "" for what lies outside the layers.

    A layer is an element of a list or sequence of alike modules: transformer.h.3, model.layers.3, blocks.3. Where such
    lists are nested (experts in a layer) the outermost counts.
    """
    modules = dict(model.named_modules())
    layers = {"": ""}
    for path, module in modules.items():
        if not path:
            continue
        parent = path.rpartition(".")[0]
        layers[path] = layers[parent] or (path if _is_layer(module, modules[parent]) else "")
    return layers


def _is_layer(module: nn.Module, parent: nn.Module) -> bool:
    """Whether the parent is a list of modules like this one, which are more than torch's elementary ones."""
    if not isinstance(parent, nn.ModuleList | nn.Sequential):
        return False
    is_elementary = type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())
    alike = sum(type(other) is type(module) for other in parent)
    return not is_elementary and (alike > 1 or (len(parent) == 1 and isinstance(parent, nn.ModuleList)))
