"""Runs that were recorded offline, as the SDK reads them back."""

import json


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
