"""How long each operator of a graph takes on the device, by running it: once for all that are alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megaselect.recomputation.tape.graph import Graph, GraphOperator
from megaselect.recomputation.tape.values import Node, Place, Read, whole_storage, with_tensors

RUNS = 3  # of which the fastest counts
ASSUMED_BYTES_PER_SECOND = 1e10  # of an operator that does not run alone


def operator_seconds(graph: Graph) -> dict[Place, float]:
    """Place of an operator -> seconds. Random states are afterwards as they were."""
    known: dict[Any, float] = {}
    seconds = {}
    devices = {one.node.device for one in graph.operators.values() if one.node.device is not None}
    cuda = [device.index or 0 for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(cuda), torch.no_grad():
        for place, one in graph.operators.items():
            key = _key(one.node)
            if key not in known:
                known[key] = _measured(one, graph)
            seconds[place] = known[key]
    return seconds


def _key(node: Node) -> Any:
    said = with_tensors((node.args, node.kwargs), lambda read: ("tensor", read.layout))
    return node.func, node.written, repr(said)


def _measured(one: GraphOperator, graph: Graph) -> float:
    node = one.node
    device = node.device or torch.device("cpu")
    try:
        args, kwargs = with_tensors((node.args, node.kwargs), lambda read: _alike(read, device))
        return min(_timed(lambda: _run(node, args, kwargs), device) for _ in range(RUNS + 1))
    except Exception:  # an index that is out of range among values of ours, and the like
        touched = sum(graph.values[number].nbytes for number in (*one.reads, *one.makes) if number in graph.values)
        return touched / ASSUMED_BYTES_PER_SECOND


def _run(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if node.written:  # backward writes into a copy
        args = (node.args[0].layout.of(whole_storage(args[0]).clone()), *args[1:])
    node.func(*args, **kwargs)


def _alike(read: Read, device: torch.device) -> Tensor:
    """A tensor read in this way, with values that no operator is slow or fast on."""
    count = max(read.value.nbytes // read.layout.dtype.itemsize, 1 + _extent(read))
    base = torch.zeros(count, dtype=read.layout.dtype, device=device)
    if read.layout.dtype.is_floating_point:
        base.uniform_()
    return read.layout.of(base)


def _extent(read: Read) -> int:
    """Place of the last element that is read."""
    pairs = zip(read.layout.size, read.layout.stride, strict=True)
    return int(read.layout.offset + sum((size - 1) * stride for size, stride in pairs))


def _timed(run: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
