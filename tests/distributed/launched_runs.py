"""Runs on several ranks, as children of a server that plays torchrun (see launch_server.py)."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from megaselect.training.checkpoint import newest_checkpoint

# Of the lines of metrics.jsonl: what differs from one run to the next, or with the number of ranks.
NOT_LASTING = {
    *("step_ms", "tokens_per_s", "mfu", "hfu", "data_ms", "forward_ms", "backward_ms", "optimizer_ms"),
    *("peak_bytes", "peak_bytes_mean", "resident_bytes", "ranks", "replicas", "shards"),
}
LIBRARIES = re.compile(r"\[W\d+ \d\d:|\[.*/gloo/|\[rank\d\]:\[W\d+ ")
HERE = Path(__file__).parent


class Run(NamedTuple):
    """starts: each one's exit codes by rank, and the seconds from its first end to its last."""

    starts: list
    out: str
    err: str

    @property
    def codes(self):
        """Of the last start."""
        return self.starts[-1]["codes"]

    @property
    def lines(self):
        """What stderr has, without what gloo and c10d write there by themselves of connections that fail."""
        return [line for line in self.err.splitlines() if not LIBRARIES.match(line)]


class LaunchServer:
    """Use as a context manager."""

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "launch_server.py")],
            env=environment | {"TORCH_CPP_LOG_LEVEL": "ERROR"},  # `main` sets it, after this process has imported torch
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, arguments, directory, ranks=2, restarts=0, kills=(), own_arguments=None, **more):
        """`megaselect` with these arguments on each rank, in that directory. own_arguments: rank -> what it has too.

        more: troubles, places, patience, environment, see launch_server.py.
        """
        out, err = Path(directory) / "out.txt", Path(directory) / "err.txt"
        for file in (out, err):
            file.unlink(missing_ok=True)
        job = {
            "arguments": list(map(str, arguments)),
            "own_arguments": {str(rank): list(map(str, more)) for rank, more in (own_arguments or {}).items()},
            "directory": str(directory),
            "out": str(out),
            "err": str(err),
            "ranks": ranks,
            "restarts": restarts,
            "kills": list(kills),
            "environment": more.get("environment", {}),
            "troubles": {str(rank): trouble for rank, trouble in more.get("troubles", {}).items()},
            "places": {str(rank): str(place) for rank, place in more.get("places", {}).items()},
            "patience": more.get("patience", 30),
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        starts = json.loads(self._process.stdout.readline())
        return Run(starts, out.read_text() if out.exists() else "", err.read_text() if err.exists() else "")


def lasting_metrics(run_dir):
    """The lines of metrics.jsonl without what no two runs have in common."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in NOT_LASTING} for line in lines]


def last_tensors(run_dir):
    """(step, (kind, name) -> tensor) of the newest checkpoint, put together from the files of its ranks."""
    checkpoint = newest_checkpoint(Path(run_dir)).checkpoint
    whole = {}
    for kind in ("model", "optimizer"):
        for name, parts in checkpoint.parts(kind).items():
            pieces = []
            for file, _ in parts:
                with safe_open(checkpoint.path / file, framework="pt") as opened:
                    pieces.append(opened.get_tensor(name))
            whole[kind, name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return checkpoint.saved.state.step, whole


def assert_same_run(run_dir, other_dir):
    """To the bit: losses and all else that lasts of metrics.jsonl, and every tensor of the last checkpoint."""
    assert lasting_metrics(run_dir) == lasting_metrics(other_dir)
    (step, tensors), (other_step, others) = last_tensors(run_dir), last_tensors(other_dir)
    assert step == other_step
    assert tensors.keys() == others.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []
