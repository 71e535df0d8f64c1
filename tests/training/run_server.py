"""A process that has imported the trainer and forks a copy of itself for each run: a real process that starts at once.

Reads a JSON line for each run, writes its process id, then its exit code (minus the signal's number) when it has ended.
Standard output goes to the file or terminal `out`, errors to `log`. With kill_at = n the run sends itself SIGKILL just
before it makes, for the n-th time, a change below `directory`: a file opened for writing, renamed, removed, cut off, a
directory made.
"""

import json
import os
import signal
import sys

import torch
import torch._dynamo  # torch.optim imports it on first use

import megaselect.kernels.preloaded
from megaselect.cli.main import main
from megaselect.training.run import train

IMPORTED = train, megaselect.kernels.preloaded  # `main` would import it in every copy


def serve():
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _run(job)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(job):
    code = 1
    try:
        os.environ.update(job["environment"])
        _redirect(0, os.devnull, os.O_RDONLY)
        _redirect(2, job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        _redirect(1, job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        hook = _Changes(job["directory"], job["kill_at"])
        sys.addaudithook(hook)
        code = main(job["arguments"])
        print(f"{hook.number} changes")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(number, path, flags):
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, number)
    os.close(opened)


class _Changes:
    def __init__(self, directory, kill_at):
        self.directory, self.kill_at, self.number = directory, kill_at, 0

    def __call__(self, event, arguments):
        if _changes(event, arguments) and str(arguments[0]).startswith(self.directory):
            if self.number == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.number += 1


def _changes(event, arguments):
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    return event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink", "os.link")


if __name__ == "__main__":
    serve()
