"""What cannot run says so in one line and exits with code 2."""

import pytest

from benchmarks.run import parse


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
        (["rivals", "--rival", "deepspeed"], "invalid choice: 'deepspeed'"),
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


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["step", "--config", "huge"], "in configs/: gpt-1.3b, gpt-350m, gpt-760m, gpt2-124m, tiny"),
        (["step", "--filter", "nothing"], "no case is left"),
    ],
)
def test_settings_that_cannot_run(runner, arguments, part):
    done = runner(*arguments, "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert part in done.stderr


def test_cases_are_listed_without_being_run(runner):
    done = runner("step", "--config", runner.config, "--device", "cpu", "--list")
    assert done.stdout == "step small s=32 own b=2 float32 [17 settings]\n"
