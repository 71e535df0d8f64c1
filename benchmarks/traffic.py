"""How many bytes a rank sends, counted at torch.distributed's functions as a ring would send them.

All-gather sends (n - 1)/n of its output; reduce-scatter and all-to-all (n - 1)/n of their input; all-reduce twice that,
of an input filled up to n equal parts. Libraries may send otherwise; two ways to train are compared by one rule.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megaselect.compatibility import replaced

Rule = Callable[[Mapping[str, Any], int], int]


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _of_output(arguments: Mapping[str, Any], ranks: int) -> int:
    return _bytes_of(arguments["output_tensor"]) // ranks * (ranks - 1)


def _of_input(arguments: Mapping[str, Any], ranks: int) -> int:
    return _bytes_of(arguments["input"]) // ranks * (ranks - 1)


def _there_and_back(arguments: Mapping[str, Any], ranks: int) -> int:
    tensor = arguments["tensor"]
    return 2 * (ranks - 1) * -(-tensor.numel() // ranks) * tensor.element_size()


# torch 2.13 has new names for two of them, and calls those for the old ones.
RULES: dict[str, Rule] = {
    "all_gather_into_tensor": _of_output,
    "all_gather_single": _of_output,
    "reduce_scatter_tensor": _of_input,
    "reduce_scatter_single": _of_input,
    "all_to_all_single": _of_input,
    "all_reduce": _there_and_back,
}
# What sends and has no rule here: counting would leave it out, so it is refused.
OTHERS = (
    *("all_gather", "all_to_all", "broadcast", "gather", "reduce", "reduce_scatter", "scatter", "send", "recv"),
    *("isend", "irecv", "batch_isend_irecv", "all_gather_object", "broadcast_object_list", "gather_object"),
)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Function -> bytes that this rank has sent by it since; inside, what has no rule raises NotImplementedError."""
    sent: Counter[str] = Counter()
    inside: list[str] = []  # a function may be made of others: what it sends counts once

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not inside:
                if name not in RULES:
                    raise NotImplementedError(f"no rule says how many bytes torch.distributed.{name} sends")
                arguments = signature.bind(*args, **kwargs).arguments
                sent[name] += RULES[name](arguments, dist.get_world_size(arguments.get("group")))
            inside.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                inside.pop()

        return call

    with ExitStack() as stack:
        for name in (*RULES, *OTHERS):
            if hasattr(dist, name):
                stack.enter_context(replaced(dist, name, functools.partial(counting, name)))
        yield sent
