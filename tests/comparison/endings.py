"""Beginnings of child processes that end in all sorts of ways."""

import os
import signal
import sys
from pathlib import Path

from megaselect.config import Config


def _redirect(log_path):
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def segmentation_fault(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def last_words(_, __, log, ___):
    _redirect(log)
    print("first\nlast")
    sys.exit(3)


def no_thread(_, __, log, ___):
    _redirect(log)
    print("cannot allocate memory for thread-local data: ABORT")
    sys.exit(127)


def silent(*_):
    pass


def no_answer(_, answer, *__):
    Path(answer).write_text('{"measurement": 1}')


def raises(_, __, log, ___):
    _redirect(log)
    raise RuntimeError("broken")


def answers_once(task, answer, log, environment):
    _redirect(log)
    seen = Path(environment["SEEN"])
    if not seen.exists():
        Path(answer).write_text('{"failure": "no", "shared": true}')
    seen.write_bytes(Path(task).read_bytes())


def no_such_data(config):
    return Config.from_dict(config.to_dict(), overrides={"data.prefix": "/absent"})
