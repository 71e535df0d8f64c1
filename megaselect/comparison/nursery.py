"""Where a comparison's processes come from: it loads the libraries once, and every process begins as its copy.

Reads a JSON line [task, answer, log] of paths for each process, and writes its exit code once it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch

from megaselect.comparison import worker
from megaselect.compatibility import load_compiler

load_compiler()


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        task_path, answer_path, log_path = json.loads(line)
        run = _fork if _may_fork(task_path) else _start
        print(run(task_path, answer_path, log_path), flush=True)


def _may_fork(task_path: str) -> bool:
    """CUDA does not work in a copy of a process that has begun to use it, as one does that asks for a GPU's name."""
    device = json.loads(Path(task_path).read_bytes())["config"]["training"]["device"]
    return device == "cpu" or not torch.backends.cuda.is_built()


def _fork(task_path: str, answer_path: str, log_path: str) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with Path(log_path).open("wb") as log:
            os.dup2(log.fileno(), 1)  # a library's print must not be taken for an exit code
            os.dup2(log.fileno(), 2)
        worker.main(task_path, answer_path)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the loop, nor to what the parent would do at its end


def _start(task_path: str, answer_path: str, log_path: str) -> int:
    command = [sys.executable, "-m", "megaselect.comparison.worker", task_path, answer_path]
    with Path(log_path).open("wb") as log:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode


if __name__ == "__main__":
    main()
