"""What goes wrong on one rank of a run, for module whole_runs: context managers inside which every rank trains."""

import os
from contextlib import contextmanager

import pytest

from megaselect.training import checkpoint_shared, checkpoint_writer
from megaselect.training.checkpoint_files import step_of


def this_rank():
    return int(os.environ["RANK"])


@contextmanager
def full_disk(rank, at_step):
    """Where that rank would write its files of a step, /dev/full stands in for them: each byte is refused."""
    write_files = checkpoint_shared.write_files

    def write(home, tensors, rows):
        if this_rank() == rank and step_of(home) == at_step:
            for name in tensors:
                (home.with_name(f".{home.name}.partial") / name).symlink_to("/dev/full")
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
