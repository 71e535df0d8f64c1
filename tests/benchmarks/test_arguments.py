"""What cannot run says so in one line and exits with code 2; what a case's command names is that case."""

import functools
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks import headline, not_measured, parts
from benchmarks.arguments import PARTS, parse
from benchmarks.session import cases_of, log_path

CONFIGS = list(Path(__file__).parents[2].glob("configs/*.yaml"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "required"),
        (["speed"], "invalid choice: 'speed'"),
        (["step", "--seq", "0"], "argument --seq: '0' is no whole number above 0"),
        (["step", "--minutes", "-1"], "argument --minutes: '-1' is no number above 0"),
        (["step", "--recompute", "some"], "invalid choice: 'some'"),
        (["kernels", "--dropout", "1"], "argument --dropout: '1' is no dropout probability"),
        (["kernels", "--config", "tiny"], "unrecognized arguments: --config tiny"),
        (["baselines", "--baseline", "deepspeed"], "invalid choice: 'deepspeed'"),
    ],
)
def test_bad_arguments(arguments, part, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(arguments)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert part in error


@pytest.mark.parametrize("part", ["", *PARTS])
def test_help_fits_80_columns(part, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse([*part.split(), "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["step", "--config", "huge"], f"the shipped configs are {', '.join(sorted(path.stem for path in CONFIGS))}"),
        (["step", "--filter", "nothing"], "no case is left: --filter nothing"),
        (["kernels", "--case", "K9"], "no case is left: --filter  --case K9"),
    ],
)
def test_settings_that_cannot_run(runner, arguments, part):
    done = runner(*arguments, "--device", "cpu")
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert part in done.err


def test_cases_are_listed_without_being_run(runner):
    done = runner("step", "--config", runner.config, "--device", "cpu", "--list")
    assert done.out == "step small s=32 own b=2 float32 [17 settings]\n"


def test_a_gpu_has_cases_where_there_is_none(runner):
    """Every config, length and attention, eager, compiled and largest."""
    cases = runner("step", "--device", "cuda", "--list").out.splitlines()
    eager = [case for case in cases if case.endswith("bfloat16 [17 settings]")]
    assert len(eager) == 4 * 4
    assert sum(" compiled [" in case for case in cases) == 3 * len(eager)
    assert sum(case.startswith("largest batch") for case in cases) == 4 * 3
    first = [case.split()[1] for case in cases[:4]]
    assert first == ["gpt2-124m", "gpt-1.3b", "gpt-350m", "gpt-760m"]
    assert all(" own " in case for case in cases[:16])


def test_every_command_of_the_page_names_one_case(monkeypatch):
    monkeypatch.setattr(parts, "read_config", functools.cache(parts.read_config))
    monkeypatch.setattr(headline, "read_config", functools.cache(headline.read_config))
    lines = [line for line in not_measured.page() if "--case" in line]
    assert len(lines) > 100
    for line in lines:
        key, _, command = (cell.strip(" `") for cell in line.strip("| ").split(" | "))
        words = shlex.split(command)
        assert words[:2] == ["python", "benchmarks/run.py"]
        assert [case.key for case in cases_of(parse(words[2:]), torch.device("cuda"))[0]] == [key]


def test_markdown_and_json_of_a_report_share_what_is_remembered(tmp_path):
    assert log_path(tmp_path / "a.md") == log_path(tmp_path / "a.json") == tmp_path / "a.cases.jsonl"
    assert log_path(tmp_path / "gpt-1.3b") != log_path(tmp_path / "gpt-1.4b")
    assert log_path(None) is None
