"""Processes that record with the real SDK, and what they recorded, as the SDK reads it back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import megaselect

ROOT = Path(megaselect.__file__).parents[1]


def run_python_in(folder, code, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **variables):
    """Runs `python -c code` in a folder, which is its home too, with no WANDB_* but those given; output as text."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(folder / "home"), "NETRC": str(folder / "netrc"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
        cwd=folder,
        env=environment | variables,
        check=False,
    )


def inspect_all(run_python, folders):
    """The records of the run in each folder, all read by one process."""
    command = f"""
from contextlib import suppress
from wandb.cli.cli import cli
for folder in {[str(folder) for folder in folders]}:
    with suppress(SystemExit):
        cli(['leet', 'inspect', '--json', folder])
"""
    output = run_python(command)
    assert (output.returncode, output.stderr) == (0, "")
    runs = []
    for line in output.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "header":
            runs.append([])
        runs[-1].append(record)
    assert len(runs) == len(folders)
    return runs


def inspect(run_python, folder):
    """The records of the run in `folder`."""
    return inspect_all(run_python, [folder])[0]


def of_kind(records, kind):
    return [record[kind] for record in records if record["type"] == kind]


def logged(records):
    """The rows of the run's history without the SDK's own columns."""
    rows = [history["item"] for history in of_kind(records, "history")]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def summary(records):
    """The summary at the end of a run, without the SDK's own values."""
    values = {name: value for update in of_kind(records, "summary") for name, value in update["update"].items()}
    return {name: value for name, value in values.items() if not name.startswith("_")}
