"""What a child process of a comparison does: from a task to an answer, two JSON files.

Every failure is an answer, not an exit code: the other settings go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter

from megaselect.comparison.any_model import measure_model
from megaselect.comparison.batch import try_batches
from megaselect.comparison.measure import measure
from megaselect.comparison.measurement import OUT_OF_MEMORY, Answer, BatchJob, ModelJob, Task, TrainJob
from megaselect.config import Config
from megaselect.devices import is_out_of_memory, resolve_placement
from megaselect.errors import MegaselectError
from megaselect.training.datasets import open_datasets
from megaselect.training.torch_state import set_determinism


def main(task_path: str, answer_path: str) -> None:
    """Read the task, do it, write the answer."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():  # torch has read it as it loaded, which may have been in the server of an earlier comparison
        torch.set_num_threads(int(threads))
    task: Task = TypeAdapter(Task).validate_json(Path(task_path).read_bytes())
    answer = _attempt(lambda: measure_model(task) if isinstance(task, ModelJob) else _prepare_and_run(task))
    Path(answer_path).write_text(json.dumps(asdict(answer)))


def _prepare_and_run(task: TrainJob | BatchJob) -> Answer:
    config = Config.from_dict(task.config)
    torch.manual_seed(config.training.seed)  # for a user's own modules; nothing of ours draws from it
    set_determinism(config.training.deterministic)
    try:
        placement = resolve_placement(config.training)
        datasets = open_datasets(config)
    except MegaselectError as error:
        return Answer(failure=str(error), shared=True)
    if isinstance(task, TrainJob):
        return Answer(measurement=measure(task, datasets))
    try_batches(task, config, placement.device, datasets)
    return Answer()


def _attempt(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except MegaselectError as error:
        return Answer(failure=str(error))
    except Exception as error:
        if is_out_of_memory(error):
            return Answer(failure=OUT_OF_MEMORY)
        first_line = (str(error).strip().splitlines() or [""])[0]
        return Answer(failure=f"{type(error).__name__}: {first_line}")
