"""`megaselect train` on a rank of the pool, or in this process; a value that is not finite where a test wants one."""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import poison
import shortage

from megaselect.cli.main import main

SMALL = (
    *("--model.num-layers", "2", "--model.hidden-size", "24", "--model.num-attention-heads", "3"),
    *("--model.seq-length", "16", "--training.micro-batch-size", "2", "--training.global-batch-size", "12"),
    *("--training.warmup-steps", "2", "--training.eval-interval", "3", "--training.eval-samples", "7"),
    *("--training.schedule", "constant", "--wandb", "disabled", "--device", "cpu", "--parallel.timeout", "60s"),
    *("--training.sample-tokens", "0"),
)


def run(flags, nan_in=None):
    """(exit code, standard output, standard error). nan_in: (module, sample) whose output gets a NaN."""
    with pytest.MonkeyPatch.context() as patch:
        if nan_in:
            poison.in_runs(patch, *nan_in, poison.nan_in_output)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(["train", *SMALL, *map(str, flags)])
    return code, out.getvalue(), err.getvalue()


def run_short_of_memory(flags, short_rank, points):
    """The same where memory runs out on one rank. points: see tests/training/shortage.py."""
    if int(os.environ["RANK"]) != short_rank:
        return run(flags)
    with pytest.MonkeyPatch.context() as patch:
        shortage.Shortage(patch, points)
        return run(flags)
