"""The SDK's variables are heeded where no setting says otherwise; the last test asks the real SDK."""

import os

import pytest
from wandb_records import inspect_all, of_kind

from megaselect.config import LoggingConfig
from megaselect.report.wandb_environment import group_for, mode_for, project_for, tags_for


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def test_a_setting_goes_before_the_variable_and_that_before_the_default(monkeypatch):
    given, left_out = LoggingConfig(wandb_project="megaselect", wandb_group="mine"), LoggingConfig()
    assert (project_for(left_out), group_for(left_out)) == ("megaselect", None)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert (project_for(left_out), group_for(left_out)) == ("theirs", "theirs")
    assert (project_for(given), group_for(given)) == ("megaselect", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "")
    assert project_for(left_out) == "megaselect"


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "auto"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "online"}, "auto"),
        ({"WANDB_MODE": "run"}, "auto"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "auto"),
    ],
)
def test_auto_heeds_the_switches_and_a_mode_that_is_given_does_not(variables, mode, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mode_for("auto") == mode
    assert [mode_for(given) for given in ("online", "offline", "disabled")] == ["online", "offline", "disabled"]


def test_tags_join_ours(monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", "sweep-3, cpu,,none ")
    assert tags_for(["none", "cpu"]) == ["none", "cpu", "sweep-3"]


RECORD = f"""
import sys
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from comparison_results import COMPARISON
from conftest import play
from megaselect.cli.train import parse_train_args
from megaselect.report.run_sinks import run_sinks
from megaselect.report.wandb_comparison import log_comparison
from megaselect.report.wandb_environment import group_for, project_for

logging = parse_train_args([]).config.logging
play(run_sinks(parse_train_args([]).config.logging, Path("runs/tiny"), console=True), [1])
given = parse_train_args(["--logging.wandb-project", "given"]).config
play(run_sinks(given.logging, Path("runs/tiny"), console=True), [1])
log_comparison(COMPARISON, "auto", project_for(logging), group_for(logging), "out", print)
"""
VARIABLES = {
    "WANDB_MODE": "dryrun",
    "WANDB_PROJECT": "theirs",
    "WANDB_RUN_GROUP": "night",
    "WANDB_TAGS": "sweep-3,a tag",
    "WANDB_JOB_TYPE": "ablation",
    "WANDB_NOTES": "a note",
    "WANDB_ENTITY": "team",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "30",
    "WANDB_SILENT": "false",
    "WANDB_CONSOLE": "wrap",
    "WANDB_RESUME": "must",
}


def test_runs_and_comparisons_are_recorded_as_the_variables_say(run_python, tmp_path):
    output = run_python(RECORD, **VARIABLES, WANDB_DIR=str(tmp_path / "scratch"))
    assert (output.returncode, output.stderr) == (0, "")
    pattern = f"{tmp_path}/scratch/wandb/offline-run-*"
    assert "".join(output.stdout.split()).count(f"wandbsync{pattern}") == 3
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()
    folders = sorted((tmp_path / "scratch/wandb").glob("offline-run-*"))
    runs = [of_kind(records, "run")[0] for records in inspect_all(run_python, folders)]
    assert {run["run_group"] for run in runs} == {"night"}
    assert all(run["tags"][-2:] == ["sweep-3", "a tag"] for run in runs)
    training = [run for run in runs if run["job_type"] == "ablation"]
    assert sorted(run["project"] for run in training) == ["given", "theirs"]
    # The group tells which model it is, as where a setting names it.
    assert {run["display_name"] for run in training} == {"selective"}
    assert {(run["notes"], run["entity"]) for run in training} == {("a note", "team")}
    others = [run for run in runs if run not in training]
    assert {run["job_type"] for run in others} == {"compare", "comparison"}
    assert {run["project"] for run in others} == {"theirs"}
