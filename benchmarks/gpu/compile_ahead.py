"""Compiles the kernels that bits and benchmarks launch, before a GPU waits for them: `-m benchmarks.gpu.compile_ahead`.

Nothing needs a GPU: a case runs on tensors without memory, the calls of our ops that it makes are repeated on a CPU's
uninitialised memory, and each launch becomes a compilation into Triton's cache, for the GPU that is named. So kernels
come out as the case itself would compile them, argument specialisation included.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import bitwise, headline
from benchmarks.configs import read_config, under
from benchmarks.families import prepare, random_batch
from benchmarks.settings import RECOMPUTE, BenchmarkSetting
from megaselect.compatibility import TorchDispatchMode
from megaselect.config import Config
from megaselect.kernels import softmax_dropout_triton
from megaselect.kernels.attention import fused_attention
from megaselect.kernels.dropout_mask import Plane, drop_threshold
from megaselect.models.gpt.model import GPT

META = torch.device("meta")
BF16 = torch.bfloat16
FUSED = ("fused", ("none", "selective", "layernorm", "all", "full"))
UNFUSED = ("unfused", tuple(RECOMPUTE))
HIDDEN = 2048  # a*d of the attention benchmark, and b*s below
TOKENS = 16384
PLAIN = ("cross_entropy", "gelu")  # our ops that are torch's alone
SCORES = 1 << 28  # of the benchmark of K1

Task = tuple[str, Callable[[], None]]


class Driver:
    """As much of a GPU's driver as compiling needs. capability: 90 for sm_90."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """The default one."""
        return 0


def stand_in(capability: int) -> None:
    """From here on every launch of this process compiles, and every device counts as one that has Triton.

    The product of probs and values around K1 is left out: nobody reads it, and a CPU takes seconds for it.
    """
    run = JITFunction.run

    def compile_only(self: JITFunction, *arguments: object, grid: object, warmup: bool, **options: object) -> object:
        del warmup
        return run(self, *arguments, grid=grid, warmup=True, **options)

    JITFunction.run = compile_only
    torch.baddbmm = _no_product
    driver.set_active(Driver(capability))
    for name, module in list(sys.modules.items()):
        if name.startswith("megaselect.kernels.") and hasattr(module, "resolve_backend"):
            module.resolve_backend = lambda *_: "triton"


def _no_product(_: Tensor, left: Tensor, right: Tensor, out: Tensor | None = None, **__: float) -> Tensor:
    return left.new_empty(left.shape[0], left.shape[1], right.shape[2]) if out is None else out


class OpCalls(TorchDispatchMode):
    """The calls of our ops inside, once each: on tensors without memory an op tells shapes and does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple[Any, tuple]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer as without the mode."""
        if func.namespace == "megaselect" and not any(name in str(func) for name in PLAIN):
            key = [(part.shape, part.stride(), part.dtype) if isinstance(part, Tensor) else part for part in args]
            self.seen.setdefault(f"{func} {key}", (func, args))
        return func(*args, **(kwargs or {}))

    def repeat(self) -> None:
        """Run each on a CPU."""
        with torch.no_grad():
            for func, args in self.seen.values():
                func(*(_with_memory(part) if isinstance(part, Tensor) else part for part in args))


def _with_memory(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return made if tensor.is_floating_point() else made.zero_()  # any number is a number, but not any index is one


def tasks(group: str) -> list[Task]:
    """(name, work) of `bits` or `headline`, in the order in which the part asks for them."""
    return list({"bits": _bits, "headline": _headline}[group]())


def _bits() -> Iterator[Task]:
    for shape in bitwise.GPU_SHAPES:
        for attention, names in (UNFUSED, FUSED):
            key = f"{shape.dtype} d={shape.head_size} s={shape.sequence} {attention}"
            dtype = bitwise.DTYPES[shape.dtype]
            yield key, functools.partial(_model, shape.config, attention, names, dtype)


def _headline() -> Iterator[Task]:
    for sequence in (4096, 2048):
        for dropout_p in headline.DROPOUTS:
            yield f"K1 s={sequence} p={dropout_p}", functools.partial(_scores, sequence, dropout_p)
    for head_size in (64, 128):
        for sequence in (4096, 2048):
            for dropout_p in headline.CUDNN_DROPOUTS:
                work = functools.partial(_attention, sequence, head_size, dropout_p)
                yield f"K2 d={head_size} s={sequence} p={dropout_p}", work
    for name in ("gpt2-124m", "gpt-1.3b", "gpt-350m", "gpt-760m"):
        short = read_config(name, {"model.num_layers": 1}).config  # all layers are alike
        for attention, names in (UNFUSED, FUSED):
            yield f"{name} {attention}", functools.partial(_model, short, attention, names, BF16)


def _model(config: Config, attention: str, names: tuple[str, ...], dtype: torch.dtype) -> None:
    """A step of a whole model under each setting of `names`."""
    with META:
        model = GPT(config.model, config.training.seed, config.training.loss_chunk_tokens).to(dtype)
    batch, cores = random_batch(config, 0, META), {}
    with OpCalls() as calls:
        for name in names:
            prepare(model, under(config, BenchmarkSetting(attention, name)), cores)
            model(*batch).backward()
            model.zero_grad()
    calls.repeat()


def _scores(sequence: int, dropout_p: float) -> None:
    scores = torch.empty(1, SCORES // sequence**2, sequence, sequence, dtype=BF16, device=META)
    samples, plane = torch.empty(1, dtype=torch.int64, device=META), Plane(0, 0, drop_threshold(dropout_p))
    _, row_max, inverse_sum, probs, mask = softmax_dropout_triton.forward(scores, samples, plane, False, False)
    kept = {"scores": scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": probs, "mask": mask}
    softmax_dropout_triton.backward(torch.empty_like(scores), row_max, samples, plane, **kept, write_dropped=True)


def _attention(sequence: int, head_size: int, dropout_p: float) -> None:
    shape = (sequence, TOKENS // sequence, HIDDEN // head_size, 3, head_size)
    qkv: Tensor = torch.empty(shape, dtype=BF16, device=META, requires_grad=True)
    samples = torch.empty(shape[1], dtype=torch.int64, device=META)
    with OpCalls() as calls:
        out = fused_attention(qkv, samples, Plane(0, 0, drop_threshold(dropout_p)), scale=head_size**-0.5)
        torch.autograd.grad(out, qkv, torch.empty_like(out))
    calls.repeat()


def main() -> int:
    """Exit status 1 where something did not compile; a line for each task."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.compile_ahead", description=__doc__.partition("\n")[0])
    parser.add_argument("group", choices=("bits", "headline"))
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th task from I")
    parser.add_argument("--nice", type=int, default=0, help="leave the processor to others")
    arguments = parser.parse_args()
    os.nice(arguments.nice)
    torch.set_num_threads(1)
    stand_in(arguments.capability)
    failed = 0
    number, count = arguments.share
    for name, work in tasks(arguments.group)[number::count]:
        started = time.monotonic()
        try:
            work()
        except Exception as error:  # the case itself will say more; the others still compile
            failed += 1
            print(f"FAILED to compile {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        else:
            print(f"compiled {name}: {time.monotonic() - started:.1f} s, Triton {triton.__version__}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
