"""`megaselect dashboard` in processes of its own, against a stand-in for the server and against none."""

import json
import os
import pty
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from megaselect.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # importlib mode leaves test folders off it
from wandb_records import run_python_in
from wandb_server import KEY, stand_in_server

MAIN = """
import sys
from megaselect.cli.main import main
sys.exit(max(main(['dashboard', *arguments]) for arguments in {calls}))
"""
PATIENT = "from megaselect.report import wandb_dashboard_save as save\nsave.SERVER_TIMEOUT_SECONDS = 600\n"
ONLINE = "to save it online: the same command, with an API key and a server in reach\n"


def dashboard(folder, *calls, before="", **process):
    """The output of a process that makes these calls, each a tuple of arguments."""
    return run_python_in(folder, before + MAIN.format(calls=calls), **process)


def without_ids(spec):
    """The same with what wandb-workspaces draws anew each time left out."""
    if isinstance(spec, dict):
        return {key: without_ids(value) for key, value in spec.items() if key not in ("id", "__id__", "name")}
    return [without_ids(value) for value in spec] if isinstance(spec, list) else spec


def test_without_a_key_the_specification_is_written_and_nobody_is_asked(tmp_path):
    ours, terminal = pty.openpty()  # on a terminal the SDK would ask for a key, for ever
    output = dashboard(tmp_path, ("--group", "demo"), stdin=terminal)
    os.close(terminal)
    os.close(ours)
    assert (output.returncode, output.stderr) == (0, "")
    wrote = "dashboard: wrote its specification to megaselect-dashboard.json"
    assert output.stdout == f"{wrote} (no API key); {ONLINE}"
    spec = json.loads((tmp_path / "megaselect-dashboard.json").read_text())
    assert spec["workspace"]["displayName"] == spec["report"]["displayName"] == "Megaselect: demo"
    assert (spec["workspace"]["entity"], spec["workspace"]["project"]) == ("", "megaselect")


def test_with_a_key_both_are_saved_as_the_specification_has_them(tmp_path):
    flags = ("--group", "demo", "--project", "project-x")
    online, local = (*flags, "--json"), (*flags, "--entity", "someone", "--out", "spec.json")
    with stand_in_server() as server:
        host = f"http://127.0.0.1:{server.server_port}"
        variables = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": host}
        output = dashboard(tmp_path, online, local, before=PATIENT, **variables)
    assert (output.returncode, output.stderr) == (0, "")
    assert [path.name for path in tmp_path.glob("*.json")] == ["spec.json"]
    workspace, report = server.views  # --out asks no server
    saved, wrote = output.stdout.splitlines(keepends=True)
    assert wrote == f"dashboard: wrote its specification to spec.json; {ONLINE}".replace(
        "command,", "command without --out,"
    )
    assert json.loads(saved) == {
        "workspace": f"{host}/someone/project-x?nw={workspace['name'].removeprefix('nw-').removesuffix('-v')}",
        "report": f"{host}/someone/project-x/reports/Megaselect:-demo--VIEW2",
    }
    assert server.projects == ["project-x"]
    assert (workspace["type"], report["type"]) == ("project-view", "runs")
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert without_ids(json.loads(workspace["spec"])) == without_ids(spec["workspace"]["spec"])
    assert without_ids(json.loads(report["spec"])) == without_ids(spec["report"]["spec"])


def connections(server):
    """How many were made to a server that never took one."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


@pytest.mark.soak
def test_a_server_that_never_answers_costs_its_timeout_once(tmp_path):
    shorter = "from megaselect.report import wandb_dashboard_save as save\nsave.SERVER_TIMEOUT_SECONDS = 1\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"http://127.0.0.1:{server.getsockname()[1]}"
        output = dashboard(tmp_path, (), before=shorter, WANDB_API_KEY=KEY, WANDB_BASE_URL=host)
        asked = connections(server)
    assert (output.returncode, output.stderr, output.stdout.count("\n")) == (0, "", 1)
    assert f"megaselect-dashboard.json (Failed to verify credentials with {host}" in output.stdout
    assert output.stdout.endswith(ONLINE)
    assert (tmp_path / "megaselect-dashboard.json").exists()
    assert asked <= 2  # one question, and the SDK's second try of it


@pytest.mark.parametrize("flag", ["--entity", "--project", "--group"])
def test_an_empty_name_is_refused(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", flag, ""]) == 2
    assert capsys.readouterr() == ("", f"error: {flag} '': must not be empty; name one, or leave the flag out\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grop", "x"], "unrecognized arguments: --grop x; --help lists the flags"),
        (["--out", "absent/x.json"], "cannot write absent/x.json: No such file or directory; choose another --out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", *arguments]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_missing_package_is_one_line_and_exit_code_2(tmp_path):
    output = dashboard(tmp_path, (), before="import sys\nsys.modules['wandb_workspaces'] = None\n")
    message = "the Python package wandb_workspaces is not installed; `pip install '.[wandb]'` installs what is needed"
    assert (output.returncode, output.stdout, output.stderr) == (2, "", f"error: {message}\n")
