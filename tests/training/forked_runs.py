"""Runs that are killed or told to stop, as children of a server (see run_server.py)."""

import json
import select
import signal
import subprocess
import sys
from os import kill
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMES = (
    "step_ms",
    "tokens_per_s",
    "mfu",
    "hfu",
    "peak_bytes",
    "resident_bytes",
    "data_ms",
    "forward_ms",
    "backward_ms",
    "optimizer_ms",
)


class RunServer:
    """Starts runs one after the other; use as a context manager."""

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py"))],
            env=environment,
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

    def fileno(self):
        """Can be read when the run has ended."""
        return self._process.stdout.fileno()

    def start(self, arguments, run_dir, kill_at=None, out=None, environment=None):
        """The process id of a run. out: the file or terminal that it prints to, where that is not the log."""
        log = str(self.log(run_dir))
        job = {"arguments": list(map(str, arguments)), "log": log, "out": str(out or log), "directory": str(run_dir)}
        self._process.stdin.write(json.dumps({**job, "kill_at": kill_at, "environment": environment or {}}) + "\n")
        return int(self._process.stdout.readline())

    def has_ended(self, seconds=0):
        """Whether the run has, or does so within that time."""
        return bool(select.select([self], [], [], seconds)[0])

    def wait(self):
        """The exit code of the run that was started last."""
        return int(self._process.stdout.readline())

    def run(self, arguments, run_dir, seconds=None, kill_at=None):
        """A run to its end, or to SIGKILL after so many seconds or before its change number kill_at: its exit code."""
        pid = self.start(arguments, run_dir, kill_at)
        if seconds is not None and not self.has_ended(seconds):
            kill(pid, signal.SIGKILL)
        code = self.wait()
        assert code in (0, -signal.SIGKILL), self.log(run_dir).read_text()
        return code

    @staticmethod
    def log(run_dir):
        """What the last run in this directory printed, unless to another file, and how many changes it made."""
        return run_dir.with_name(run_dir.name + ".log")


def lasting_metrics(run_dir):
    """The lines of metrics.jsonl without what differs from one run to the next: times and the process's memory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
