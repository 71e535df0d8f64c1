"""From the arguments of an operator to what a recipe of its results reads: values, and how each is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megaselect.compatibility import version_of
from megaselect.recomputation.tape.call_log import CallLog
from megaselect.recomputation.tape.contents import Contents
from megaselect.recomputation.tape.values import Leaf, Node, Read, Value, is_allocation, layout_of

SMALL = 1 << 16  # bytes: of a parameter that is only there while its module runs, a copy is made
NO_CALL = -2  # number of the call of what no pass ran


class Reader:
    """In one forward pass."""

    def __init__(self, contents: Contents, log: CallLog) -> None:
        self._contents, self._log = contents, log

    def reads(self, tree: Any) -> Any:
        """`tree` with a Read in place of each tensor."""
        if isinstance(tree, Read):
            return tree
        if isinstance(tree, Tensor):
            return self._read(tree)
        if isinstance(tree, tuple | list):
            return type(tree)(self.reads(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self.reads(part) for key, part in tree.items()}
        return tree

    def _read(self, tensor: Tensor) -> Read:
        path, argument = self._log.argument_of(tensor)
        if path is not None and argument is not None and not self._log.is_as_it_came(path, argument):
            path = None
        value = self._contents.value_of(tensor)
        if value is None or is_allocation(value):
            value = self._value_without_maker(tensor, argument)
        elif value.node is None and value.leaf is None and argument is not None:
            _give_leaf(value, argument)
        return Read(value, layout_of(tensor), path)

    def _value_without_maker(self, tensor: Tensor, argument: Tensor | None) -> Value:
        """Of a storage whose maker is not known or will not run again."""
        value = self._contents.new_value(tensor.untyped_storage().nbytes())
        if self._contents.is_owned(tensor):
            value.is_owned = True
            value.leaf = Leaf(tensor if argument is None else argument, version_of(tensor))
        elif argument is not None:
            _give_leaf(value, argument)
        self._contents.enter(tensor, value)
        return value

    def blank(self, tensor: Tensor) -> Read:
        """In place of an argument of which only the shape is read."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
        made = {"dtype": tensor.dtype, "device": tensor.device}
        node = Node(torch.ops.aten.empty_strided.default, ((extent if tensor.numel() else 0,), (1,)), made, NO_CALL)
        value = self._contents.new_value(0, node)
        node.results[0] = value.number
        return Read(value, layout_of(tensor)._replace(offset=0))


def _give_leaf(value: Value, argument: Tensor) -> None:
    """As it came into a call: with the version counter of its owner, which an alias made down here would lack."""
    value.is_gathered = isinstance(argument, nn.Parameter)  # and not the model's own: there while its module runs
    if not value.is_gathered:
        value.leaf = Leaf(argument, version_of(argument))
    elif argument.untyped_storage().nbytes() <= SMALL:
        value.leaf = Leaf(argument.detach().clone(), 0)
