"""Tries micro-batches of growing size in one process, until one does not train."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from megaselect.build import build_model
from megaselect.comparison.measurement import BatchJob
from megaselect.comparison.search import search_after
from megaselect.config import Config
from megaselect.models.gpt.model import GPT
from megaselect.training.datasets import Datasets
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState
from megaselect.training.step import Stepper


def try_batches(job: BatchJob, config: Config, device: torch.device, datasets: Datasets) -> None:
    """Take a step with each size that the search asks for, with the optimizer's moments in memory.

    Writes a line to the log before a size and one after it. The first size that does not fit raises, and ends the
    process: what failed may have left memory in pieces.
    """
    if job.limit_bytes is not None:
        _limit_memory(device, job.limit_bytes)
    search = search_after(config.training.micro_batch_size, job.outcomes)
    with Path(job.log_path).open("w", buffering=1) as log:
        trained: tuple[GPT, MixedPrecisionAdamW] | None = None
        while (size := search.next_size()) is not None:
            log.write(f"{size} begins\n")
            sized = sized_config(config, size)
            trained = trained or _with_moments(sized, datasets)
            Stepper(sized.training, *trained, datasets.train).step(RunState(0, 0))
            if device.type == "cuda":
                torch.cuda.empty_cache()
            log.write(f"{size} fits\n")
            search.record(size, "")


def _with_moments(config: Config, datasets: Datasets) -> tuple[GPT, MixedPrecisionAdamW]:
    """A model and its optimizer after a first step."""
    model = build_model(config)
    optimizer = MixedPrecisionAdamW(model, config.training)
    Stepper(config.training, model, optimizer, datasets.train).step(RunState(0, 0))
    return model, optimizer


def sized_config(config: Config, size: int) -> Config:
    """The config with steps of one micro-batch of `size`."""
    sections = config.to_dict()
    sections["training"] |= {"micro_batch_size": size, "global_batch_size": size}
    return Config.from_dict(sections)


def _limit_memory(device: torch.device, limit_bytes: int) -> None:
    """Beyond the limit an allocation fails, as it does on a smaller device."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit_bytes / total, 1.0), device)
    else:
        # Private writable memory, whether touched or not. RLIMIT_AS would count the libraries' code as well.
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
