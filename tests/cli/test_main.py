"""The entry points as a user meets them: child processes, exit codes, one line on stderr."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megaselect.cli.main import _COMMANDS

ROOT = Path(__file__).parents[2]
COMMANDS = list(_COMMANDS)
MEGASELECT = [sys.executable, "-c", "import sys; from megaselect.cli.main import main; sys.exit(main())"]
TRAIN = [sys.executable, str(ROOT / "train.py")]


def run(command: list[str], *arguments: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    child = subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    return child.returncode, child.stdout, child.stderr


@pytest.mark.parametrize("command", [TRAIN, [*MEGASELECT, "train"]], ids=["train.py", "megaselect train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "3"], "error: unknown flag --lr; did you mean --training.lr?\n"),
        (["--max-steps", "0"], "error: --max-steps 0: must be at least 1\n"),
        (
            ["--config", "mine.yaml"],
            "error: mine.yaml: unknown key model.hiden_size; did you mean model.hidden_size?\n",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, arguments, message, tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {hiden_size: 64}\n")
    assert run(command, *arguments, cwd=tmp_path) == (2, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: unknown command trian; did you mean train?\n"),
        (["--frob"], f"error: unknown command --frob; use {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}\n"),
        (["data"], "error: the following arguments are required: COMMAND; --help lists the flags\n"),
    ],
)
def test_a_mistaken_command_is_one_line_and_exit_code_2(arguments, message):
    assert run(MEGASELECT, *arguments) == (2, "", message)


def test_an_error_of_a_command_is_one_line_too(tmp_path):
    missing = str(tmp_path / "absent")
    code, out, err = run(MEGASELECT, "data", "prepare", "--input", missing, "--output", str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert missing in err


def test_debug_shows_the_traceback_before_the_line():
    for arguments in (["train", "--lr", "3", "--debug"], ["--debug", "train", "--lr", "3"]):
        code, out, err = run(MEGASELECT, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("Traceback (most recent call last):\n")
        assert err.endswith("\nerror: unknown flag --lr; did you mean --training.lr?\n")


def test_help_and_version():
    code, text, err = run(MEGASELECT)
    assert (code, err) == (0, "")
    assert text.startswith("usage: megaselect COMMAND ...\n")
    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []
    assert max(map(len, text.splitlines())) <= 80
    assert run(MEGASELECT, "--help") == (0, text, "")
    assert run(MEGASELECT, "--version") == (0, "megaselect 0.1.0\n", "")
    assert run(TRAIN, "--version") == (0, "megaselect 0.1.0\n", "")
    assert run([sys.executable, "-m", "megaselect"], "--help") == (0, text, "")
    own, installed = run(TRAIN, "--help"), run(MEGASELECT, "train", "--help")
    assert own[1].startswith("usage: train.py [--config FILE]")
    assert own[1].replace("train.py", "megaselect train", 1) == installed[1]
    assert "prepare" in run(MEGASELECT, "data", "--help")[1]


def test_an_interrupt_is_one_line_and_exit_code_130(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    child = subprocess.Popen([*TRAIN, "--config", str(pipe)], stderr=subprocess.PIPE, text=True)
    with pipe.open("wb"):  # returns once the child has opened the other end, and so is inside main
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=600)
    assert (child.returncode, err) == (130, "interrupted\n")


def test_a_missing_package_is_named_with_the_remedy():
    bare = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {MEGASELECT[2]}"]
    assert run(bare, "train") == (
        2,
        "",
        "error: the Python package pydantic is not installed; `pip install .` installs what is needed\n",
    )
    code, _, err = run(bare, "train", "--debug")
    assert code == 2
    assert "ModuleNotFoundError: No module named 'pydantic'" in err


def test_a_defect_of_megaselect_keeps_its_traceback(tmp_path):
    """A module of ours that is missing is no package that the user could install."""
    (tmp_path / "megaselect" / "cli").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "cli/__init__.py", "cli/main.py", "cli/launchers.py", "cli/words.py"):
        (tmp_path / "megaselect" / name).write_text((ROOT / "megaselect" / name).read_text())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {MEGASELECT[2]}"
    code, _, err = run([sys.executable, "-I", "-c", code], "train")
    assert code == 1
    assert err.endswith("ModuleNotFoundError: No module named 'megaselect.cli.train'\n")
