"""Whole runs of `megaselect train` on the ranks of the pool, and what they leave on disk."""

import io
import json
import re
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open

from megaselect.cli import launchers
from megaselect.cli.main import main
from megaselect.distributed.board import LostRank
from megaselect.distributed.launch import joined_ranks
from megaselect.errors import CheckpointError
from megaselect.training import checkpoint_shared
from megaselect.training.checkpoint import find_checkpoint
from megaselect.training.checkpoint_files import checkpoint_path, inspect
from megaselect.training.checkpoint_records import Damage

VOCABULARY = 97
# Rows that no number of ranks divides; of four ranks the last has none of those that are 6.
SMALL_RUN = (
    *("--model.num-layers", "1", "--model.hidden-size", "6", "--model.num-attention-heads", "3"),
    *("--model.ffn-hidden-size", "10", "--model.seq-length", "12", "--model.vocab-size", str(VOCABULARY)),
    *("--training.micro-batch-size", "2", "--training.global-batch-size", "24", "--training.warmup-steps", "2"),
    *("--training.eval-interval", "2", "--training.eval-samples", "7", "--training.schedule", "constant"),
    *("--training.save-interval", "2", "--training.keep-checkpoints", "9", "--training.lr", "1e-2"),
    *("--device", "cpu", "--wandb", "disabled", "--parallel.timeout", "30s"),
)
# Times, memory of the process, and how the work was spread.
_NOT_ALIKE = re.compile(
    r".*(_ms|_per_s)|mfu|hfu|(peak|allocated|reserved|resident)_bytes(_mean)?|ranks|replicas|shards"
)


class Ended(NamedTuple):
    """A run on several ranks: what each of them returned and wrote."""

    codes: list[int]
    out: list[str]
    err: list[str]


@dataclass(frozen=True)
class SmallRuns:
    """`small_runs(ranks, run_dir, *flags)` trains."""

    pool: object
    prefix: Path

    def __call__(self, ranks, run_dir, *flags, setup=None):
        """setup: the name of a context manager of module troubles, and its keywords, inside which every rank trains."""
        arguments = [*SMALL_RUN, "--data.prefix", self.prefix, "--run-dir", run_dir, *flags]
        keywords = {"arguments": [str(word) for word in arguments], "setup": setup}
        return Ended(*map(list, zip(*self.pool.run(ranks, "whole_runs", "train", **keywords), strict=True)))


def train(arguments, setup=None):
    """On each rank: exit code, standard output and standard error."""
    with ExitStack() as stack:
        out, err = (
            stack.enter_context(redirect_stdout(io.StringIO())),
            stack.enter_context(redirect_stderr(io.StringIO())),
        )
        launchers.FIRST_RANK_SECONDS = launchers.OTHER_RANKS_SECONDS = 0.0  # no launcher ends the others here
        if setup:
            import troubles

            name, keywords = setup
            stack.enter_context(getattr(troubles, name)(**keywords))
        code = main(["train", *arguments])
    return code, out.getvalue(), err.getvalue()


def read_metrics(run_dir):
    """The lines of metrics.jsonl, without what no two runs have alike."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not _NOT_ALIKE.fullmatch(name)} for line in lines]


def read_tensors(home):
    """Name -> the whole tensor, by what lies in the files of a checkpoint and by nothing else than its manifest."""
    manifest, found = json.loads((home / "manifest.json").read_text()), {}
    for file, record in manifest["files"].items():
        if file.endswith(".safetensors"):
            with safe_open(home / file, framework="pt") as opened:
                for name, tensor in record["tensors"].items():
                    start = (tensor.get("rows") or [0])[0]
                    assert found.setdefault(name, {}).setdefault(start, file) == file
                    found[name][start] = opened.get_tensor(name)
    return {
        name: torch.cat([parts[start] for start in sorted(parts)]) if len(parts) > 1 else parts[0]
        for name, parts in found.items()
    }


def assert_same_run(run_dir, expected_dir, steps=8):
    """The same metrics, and at the end the same tensors, to the bit."""
    metrics, expected = read_metrics(run_dir), read_metrics(expected_dir)
    assert [line["step"] for line in metrics] == list(range(1, steps + 1))
    assert metrics == expected
    assert_same_tensors(checkpoint_path(run_dir, steps), checkpoint_path(expected_dir, steps))


def assert_same_tensors(home, expected_home):
    tensors, expected = read_tensors(home), read_tensors(expected_home)
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if tensors[name].dtype != expected[name].dtype] == []
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []


def find(run_dirs, resume="auto"):
    """On each rank: the name of the checkpoint that a run in its run directory continues from, and notes; or an error.

    run_dirs: by rank.
    """
    with joined_ranks(30) as ranks:
        try:
            found = find_checkpoint(resume, Path(run_dirs[ranks.rank]), ranks)
        except CheckpointError as error:
            return "error", [str(error)]
        return found.checkpoint.path.name, found.notes


def look_into(paths):
    """On each rank: what is wrong with its path, a checkpoint, as all ranks find; None where nothing is."""
    with joined_ranks(30) as ranks:
        try:
            inspect(Path(paths[ranks.rank]), ranks)
        except Damage as damage:
            return str(damage)
        return None


def write_alone(home, writer):
    """The rank `writer` writes a checkpoint of which the others know nothing: what it says, and seconds."""
    with joined_ranks(30) as ranks:
        if ranks.rank != writer:
            return ranks.from_first(None)
        began, shared = time.monotonic(), checkpoint_shared.SharedWriter(ranks, lambda: None)
        shared.give_up_soon()
        with pytest.raises(LostRank) as raised:
            shared.write(Path(home), lambda: checkpoint_shared.WrittenPart({}, {}), None)
        seconds = time.monotonic() - began
        ranks.from_first(None)
        return str(raised.value), seconds
