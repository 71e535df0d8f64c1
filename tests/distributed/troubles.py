"""What goes wrong on one rank of a run, for module whole_runs: context managers inside which every rank trains."""

import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from megaselect.training import checkpoint_shared, checkpoint_writer
from megaselect.training.checkpoint_files import step_of

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from small_disks import file_size_limit

QUOTA_BYTES = 4500  # less than an optimizer's file, more than the metrics of a few steps


def this_rank():
    return int(os.environ["RANK"])


@contextmanager
def quota(rank, at_step):
    """While that rank writes its files of a step none may grow beyond QUOTA_BYTES."""
    write_files = checkpoint_shared.write_files

    def write(home, tensors, rows):
        with file_size_limit(QUOTA_BYTES) if this_rank() == rank and step_of(home) == at_step else nullcontext():
            return write_files(home, tensors, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_shared, "write_files", write)
        yield


@contextmanager
def no_host_memory(rank, save):
    """For the copy of that save, counted from 1."""
    saves, begin_copy = [], checkpoint_writer.CheckpointSaver._begin_copy

    def begin(saver, optimizer):
        saves.append(optimizer)
        with pytest.MonkeyPatch.context() as patch:
            if this_rank() == rank and len(saves) == save:
                patch.setattr(checkpoint_writer.torch, "empty", _refuse)
                saver._host = {kind: checkpoint_writer.HostCopy() for kind in saver._host}
            return begin_copy(saver, optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer.CheckpointSaver, "_begin_copy", begin)
        yield


def _refuse(*_, **__):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
