"""A step that does not fit: what would, and the next stronger recompute mode."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch

from megaselect.config import Config, RecomputeConfig
from megaselect.config.recompute import SETTINGS_OF_MODE
from megaselect.devices import Placement, free_bytes, is_out_of_memory
from megaselect.distributed.layout import Layout
from megaselect.distributed.together import BeginAgain
from megaselect.errors import OutOfMemoryError
from megaselect.models.gpt.apply_plan import applied_plan, apply_recompute
from megaselect.models.gpt.model import GPT
from megaselect.planning.auto import problem_of
from megaselect.recomputation.presets import describe_recompute
from megaselect.training.memory_choices import Failed, PresetCost
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.units import size

_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(\w+)", re.IGNORECASE)  # torch's words, and numpy's
LONGEST_PROBLEM = 100  # characters


def step_up(
    config: Config,
    model: GPT,
    optimizer: MixedPrecisionAdamW,
    step: int,
    problem: str,
    note: Callable[[str], None],
) -> Config:
    """Ready the model for the step after `step` to be taken again with the next stronger mode; the config with it.

    problem: what the allocator said. To be called where nothing holds the step's tensors any more, so that what is free
    can be told. Raises OutOfMemoryError, which says what would fit, where on_oom is stop or no mode is stronger, and
    BeginAgain where there are other ranks.
    """
    optimizer.abandon_step()
    _let_go()
    on_gpu = next(model.parameters()).device.type == "cuda"
    failed = Failed(config, applied_plan(model), optimizer.dtype.itemsize, on_gpu, optimizer.layout)
    happened = f"step {step + 1} ran out of memory ({_in_short(problem)})"
    if not optimizer.is_whole:
        raise OutOfMemoryError(
            f"{happened} while it changed the weights: continue from the last checkpoint, with a stronger --recompute "
            "or a smaller --training.micro-batch-size"
        )
    happened = f"{happened} with recompute {describe_recompute(config.recompute, failed.plan)}"
    stronger = failed.stronger()
    if stronger is None or config.training.on_oom == "stop":
        budget = _budget_bytes(model, optimizer)
        raise OutOfMemoryError(f"{happened}. {_saved(failed)}. {_what_fits(failed, budget)}{_hint(stronger)}")
    said = (
        f"{happened}. It is taken again with {stronger.name}, which saves {size(stronger.saved)} for backward "
        f"in place of {size(failed.saved)}; the losses do not change. To start with it: {stronger.flags}"
    )
    if optimizer.layout.ranks > 1:  # the others wait for this one within the step
        raise BeginAgain({"recompute": _as_config(stronger.settings)}, said)
    apply_recompute(model, stronger.plan, compiled=config.training.compile)
    note(f"note: {said}")
    return config.model_copy(update={"recompute": stronger.settings})


def _as_config(recompute: RecomputeConfig) -> dict[str, Any]:
    """The section as a config file has it."""
    dumped = recompute.model_dump(mode="json")
    return {name: dumped[name] for name in ("mode", *SETTINGS_OF_MODE[recompute.mode])}


@contextmanager
def memory_errors_explained(doing: str, remedy: str) -> Iterator[None]:
    """What runs out of memory inside becomes an OutOfMemoryError that says what was being done, and the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"ran out of memory while {doing} ({_in_short(str(error))}): {remedy}") from error


def static_remedy(config: Config, placement: Placement, ranks: int = 1) -> str:
    """What to do where weights and optimizer state alone are too much for one of so many ranks."""
    layout = Layout.of(config.parallel, ranks, rank=0)
    held = problem_of(config, placement.element_bytes, placement.on_gpu, layout).static.total
    return (
        f"weights, gradients and optimizer state take {size(held)}, whatever the recompute setting; choose a smaller "
        "model, or free memory that other processes hold"
    )


def _let_go() -> None:
    """Free what the step has left: what waits for the garbage collector, and the allocator's cache."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _in_short(problem: str) -> str:
    """`2.00 GiB was asked for`, or the beginning of what the allocator said."""
    match = _ASKED.search(problem)
    if match is None:
        return shorten(problem or "no reason given", LONGEST_PROBLEM, placeholder=" ...")
    number, unit = match[1].rstrip("."), match[2]  # numpy writes 128. KiB
    count = size(int(number)) if unit == "bytes" else f"{number} {unit}"
    return f"{count} more was asked for"


def _budget_bytes(model: GPT, optimizer: MixedPrecisionAdamW) -> int:
    """What a step may hold in all. What is available on a CPU leaves out what is held already."""
    device = next(model.parameters()).device
    free = free_bytes(device)
    if device.type == "cuda":
        return free
    own = [piece.tensor for piece in optimizer.weight_pieces().values()] + list(optimizer.tensors().values())
    return free + sum({tensor.data_ptr(): tensor.nbytes for tensor in own}.values())


def _saved(failed: Failed) -> str:
    """What each setting keeps."""
    presets = failed.presets()
    sizes = {} if failed.plan in [preset.plan for preset in presets] else {"this run": failed.saved}
    for preset in presets:
        if preset.saved not in sizes.values():  # with attention that keeps no scores, core_attn changes nothing
            sizes[preset.name] = preset.saved
    listed = ", ".join(f"{name} {size(count)}" for name, count in sizes.items())
    return f"A micro-batch of {failed.config.training.micro_batch_size} saves for backward: {listed}"


def _what_fits(failed: Failed, budget: int) -> str:
    fitting = [f"{preset.flags} ({size(preset.peak)})" for preset in failed.fitting(budget)]
    smaller = failed.smaller_micro_batch(failed.plan, budget)
    if smaller:
        fitting.append(f"--training.micro-batch-size {smaller[0]} ({size(smaller[1])})")
    room = f"the {size(budget)} that a step may hold"
    if fitting:
        return f"By their predicted peak these fit into {room}: {', '.join(fitting)}"
    least = min(failed.presets(), key=lambda preset: preset.peak)
    smaller = failed.smaller_micro_batch(least.plan, budget)
    if smaller:
        flags = f"{least.flags} --training.micro-batch-size {smaller[0]}"
        return f"By its predicted peak this fits into {room}: {flags} ({size(smaller[1])})"
    return (
        f"Nothing is predicted to fit into {room}: {least.name} has a peak of {size(least.peak)}, of which weights, "
        f"gradients and optimizer state take {size(failed.held)}"
    )


def _hint(stronger: PresetCost | None) -> str:
    return "; --on-oom step-up takes the next stronger mode by itself" if stronger else ""
