"""megaselect runs: what each state, and each kind of damage, looks like in the table; nothing stops the listing."""

import io
import json
import math
import os
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from megaselect.cli.main import main
from megaselect.config import Config
from megaselect.report.run_list import ListedRun, find_runs, read_run
from megaselect.report.runs_table import ago, print_runs
from megaselect.training.run_lock import RunLock
from megaselect.training.run_record import RunRecord, Segment

CONFIG = {
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 16, "vocab_size": 4096},
    "training": {"max_steps": 500},
}


def make_run(place, state="finished", steps=3, **overrides):
    """A run directory by the parts that write one, except for the metrics. A killed run is one that never ends."""
    place.mkdir(parents=True)
    config = Config.from_dict(CONFIG, overrides={name.replace("__", "."): value for name, value in overrides.items()})
    (place / "config.yaml").write_text(config.to_yaml())
    record = RunRecord(place, Segment.begin(0, "cpu", "2.0"), print)
    record.begin()
    write_metrics(place, [{"loss": 5.0 - step, "tokens_per_s": 100.0 * step} for step in range(1, steps + 1)])
    RunLock(place).release()
    if state == "stopped":
        record.stopped_by = "SIGTERM"
    if state != "killed":
        error = ValueError("no such luck") if state == "failed" else None
        record.__exit__(type(error) if error else None, error, None)
    return place


def write_metrics(place, lines):
    numbered = [json.dumps({"step": step, **line}) + "\n" for step, line in enumerate(lines, 1)]
    (place / "metrics.jsonl").write_text("".join(numbered))


def shown(runs, width=80, now=0.0):
    console = Console(file=io.StringIO(), width=width)
    print_runs(runs, console, now)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("state", ["finished", "stopped", "failed", "killed"])
def test_the_state_of_a_run_that_has_ended(tmp_path, state):
    run = read_run(make_run(tmp_path / "run", state))
    reason = {"stopped": "SIGTERM", "failed": "ValueError: no such luck"}.get(state)
    assert (run.state, run.reason, run.step, run.max_steps, run.loss) == (state, reason, 3, 500, 2.0)
    assert (run.tokens_per_s, run.starts, run.problems) == (200.0, 1, [])
    assert run.changed == max(path.stat().st_mtime for path in (tmp_path / "run").iterdir() if path.name[0] != ".")


def test_a_run_whose_lock_is_held_runs_or_starts(tmp_path):
    running, starting = make_run(tmp_path / "a", "killed"), make_run(tmp_path / "b", "stopped")
    locks = [RunLock(running), RunLock(starting)]
    assert [read_run(place).state for place in (running, starting)] == ["running", "starting"]
    for lock in locks:
        lock.release()
    assert [read_run(place).state for place in (running, starting)] == ["killed", "stopped"]


@pytest.mark.parametrize(("steps", "state"), [(500, "finished"), (499, "unknown")])
def test_a_run_without_a_record(tmp_path, steps, state):
    run_dir = make_run(tmp_path / "run", steps=steps)
    (run_dir / "run.json").unlink()
    run = read_run(run_dir)
    assert (run.state, run.starts) == (state, 0)


def test_the_best_loss_is_that_of_the_newest_checkpoint_or_a_later_one(tmp_path):
    run_dir = make_run(tmp_path / "run")
    assert read_run(run_dir).best_valid_loss is None
    write_metrics(run_dir, [{"loss": 5.0, "valid_loss": value} for value in (4.5, 4.25, math.nan, 4.75)])
    assert read_run(run_dir).best_valid_loss == 4.25
    for step, best in ((7, 1.0), (12, 4.0)):
        saved = run_dir / "checkpoints" / f"step-{step:08d}"
        saved.mkdir(parents=True)
        (saved / "state.json").write_text(json.dumps({"state": {"best_valid_loss": best}}))
    assert read_run(run_dir).best_valid_loss == 4.0
    (saved / "state.json").write_text("torn")
    assert read_run(run_dir).best_valid_loss == 4.25


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        ({}, "none"),
        ({"recompute__mode": "selective", "recompute__modules": ("core_attn", "dropout")}, "core_attn dropout"),
        ({"recompute__mode": "full", "recompute__method": "sqrt", "model__attention": "fused"}, "fused full sqrt"),
    ],
)
def test_the_setting_is_named_as_compare_names_it(tmp_path, overrides, setting):
    assert read_run(make_run(tmp_path / "run", **overrides)).setting == setting


@pytest.mark.parametrize(("asked", "label"), [(True, "full, compiled"), (False, "full")])
def test_a_run_that_was_compiled_is_shown_so(tmp_path, asked, label):
    run = read_run(make_run(tmp_path / "run", recompute__mode="full", training__compile=asked))
    assert (run.compiled, run.setting) == (asked, "full")
    setting = shown([run], 120)[1].rpartition(" - ")[2]  # after the best validation loss, which there is none of
    assert setting.startswith(f"{label}  ")


DAMAGE = {
    "no config": ("config.yaml", None, "config.yaml: No such file or directory"),
    "config is no YAML": ("config.yaml", "model: [", "config.yaml is not a run's config"),
    "config is empty": ("config.yaml", "", "config.yaml is not a run's config"),
    "config is a list": ("config.yaml", "[3]", "config.yaml is not a run's config"),
    "config has another mode": ("config.yaml", yaml.safe_dump({"training": {"max_steps": 3}, "model": {
        "attention": "fused"}, "recompute": {"mode": "most"}}), "config.yaml is not a run's config"),
    "config is huge": ("config.yaml", "#" * 2**21, "config.yaml is not a run's config"),
    "config is deep": ("config.yaml", "[" * 2000, "config.yaml is not a run's config"),
    "config is not text": ("config.yaml", "\0", "config.yaml is not a run's config"),
    "no metrics": ("metrics.jsonl", None, "metrics.jsonl holds no step"),
    "metrics are empty": ("metrics.jsonl", "", "metrics.jsonl holds no step"),
    "one torn line": ("metrics.jsonl", '{"step": 1', "metrics.jsonl holds no step"),
    "metrics of others": ("metrics.jsonl", "epoch,loss\n1,2\n", "metrics.jsonl holds a line that no run wrote"),
    "record of others": ("run.json", "{}", "run.json is not a run's record"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_the_rest_shown(tmp_path, case):
    name, content, problem = DAMAGE[case]
    run_dir = make_run(tmp_path / "run")
    (run_dir / name).unlink()
    if content is not None:
        (run_dir / name).write_text(content)
    run = read_run(run_dir)
    assert run.problems == [problem]
    assert (run.step is None) == (name == "metrics.jsonl")
    assert f"run: {problem}" in shown([run])


def test_a_torn_last_line_is_no_damage(tmp_path):
    run_dir = make_run(tmp_path / "run")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run = read_run(run_dir)
    assert (run.step, run.problems) == (3, [])


@pytest.mark.parametrize("value", ["5.0", None, [], True, math.nan, math.inf, 1e30])
def test_a_loss_of_any_kind_can_be_shown(tmp_path, value):
    run_dir = make_run(tmp_path / "run")
    write_metrics(run_dir, [{"loss": value, "tokens_per_s": value, "valid_loss": value}])
    assert len(shown([read_run(run_dir)])) == 2


def test_runs_are_found_two_levels_down_and_once(tmp_path):
    for name in ("a", "b/c", "b/d", "b/e/too-deep", ".hidden/f", "a/inside"):
        make_run(tmp_path / name)
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "result.json").write_text("{}")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs([tmp_path, tmp_path / "b" / "c"])]
    assert found == ["a", "b/c", "b/d"]


def listed(**values):
    defaults = {
        "path": "runs/tiny-selective-20260102-030405",
        "state": "finished",
        "step": 500,
        "max_steps": 500,
        "loss": 4.15,
        "best_valid_loss": 4.25,
        "setting": "core_attn dropout",
        "tokens_per_s": 1234.5,
        "changed": -200.0,
    }
    return ListedRun(**defaults | values)


def test_columns_go_where_there_is_no_room():
    runs = [listed(), listed(path="runs/short", state="killed", step=None, loss=None, setting=None)]
    assert shown(runs, 110) == [
        "run                            state       step   loss best valid setting           tokens/s   changed",
        "tiny-selective-20260102-030405 finished 500/500 4.1500     4.2500 core_attn dropout    1,234 3 min ago",
        "short                          killed     -/500      -     4.2500 -                    1,234 3 min ago",
    ]
    assert shown(runs, 80) == [
        "run                           state       step   loss setting           tokens/s",
        "tiny-selective…0260102-030405 finished 500/500 4.1500 core_attn dropout    1,234",
        "short                         killed     -/500      - -                    1,234",
    ]
    for width in range(20, 120, 7):
        assert max(map(len, shown(runs, width))) <= width


def test_a_long_error_is_cut(tmp_path):
    lines = shown([listed(state="failed", reason="no " * 200)])
    assert lines[2].startswith("tiny-selective-20260102-030405: failed: no no")
    assert lines[-1].endswith("...")
    assert sum(map(len, lines[2:])) < 220
    assert max(map(len, lines)) <= 80


def test_ages():
    ages = [ago(seconds) for seconds in (-5, 0.2, 59.9, 60, 3599, 3600, 86399, 86400, 7 * 86400)]
    assert ages == [
        *("0 s ago", "0 s ago", "59 s ago", "1 min ago", "59 min ago", "1 h ago", "23 h ago", "1 d ago", "7 d ago"),
    ]


def test_the_command_sorts_and_prints_json(tmp_path, capsys):
    for name, steps in (("a", 3), ("b", 2), ("c", 4)):
        run_dir = make_run(tmp_path / name, steps=steps)
        for path in run_dir.iterdir():
            os.utime(path, (steps, steps))
    make_run(tmp_path / "d", steps=0)
    write_metrics(tmp_path / "d", [{"loss": math.nan}])
    for order, expected in (("name", "abcd"), ("loss", "cabd"), ("step", "cabd"), ("changed", "dcab")):
        assert main(["runs", str(tmp_path), "--json", "--sort", order]) == 0
        runs = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert "".join(run["path"][-1] for run in runs) == expected
    assert runs[0]["loss"] is None


def test_the_command_where_there_are_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
    assert main(["runs", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: nowhere: no such directory; name run directories, or directories of them\n"
    )


def test_the_command_needs_no_torch(tmp_path):
    make_run(tmp_path / "run")
    code = (
        "import sys; from megaselect.cli.main import main; main(['runs', sys.argv[1]])\n"
        "print(sorted({'torch', 'numpy', 'wandb', 'sentencepiece'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[1].startswith("run finished 3/500 2.0000")
    assert child.stdout.splitlines()[-1] == "[]"


LAYOUTS = {
    "4 parameters": {"ranks": 4, "replicas": 1, "sharding": "parameters"},
    "2x2 gradients": {"ranks": 4, "replicas": 2, "sharding": "gradients"},
    "8 none": {"ranks": 8, "replicas": 8, "sharding": "none"},
    "1": {"ranks": 1, "replicas": 1, "sharding": "none"},
    "-": None,
}


def test_the_ranks_of_runs_have_a_column_where_one_had_several():
    runs = [listed(path=f"runs/{number}", layout=layout) for number, layout in enumerate(LAYOUTS.values())]
    assert shown(runs, 80)[:3] == [
        "run state       step   loss setting           ranks         tokens/s   changed",
        "0   finished 500/500 4.1500 core_attn dropout 4 parameters     1,234 3 min ago",
        "1   finished 500/500 4.1500 core_attn dropout 2x2 gradients    1,234 3 min ago",
    ]
    column = shown(runs, 80)[0].index("ranks")
    assert [line[column : column + 14].rstrip() for line in shown(runs, 80)[1:]] == list(LAYOUTS)
    assert "ranks" not in shown(runs[3:], 110)[0]
    for width in range(20, 120, 7):
        assert max(map(len, shown(runs, width))) <= width


@pytest.mark.parametrize("layout", [{}, {"ranks": "4"}, {"ranks": 4, "replicas": 0}, {"ranks": 4, "replicas": None}])
def test_a_layout_that_no_run_wrote_is_not_known(layout):
    assert len(shown([listed(layout=layout)])) == 2


def test_the_layout_is_that_of_the_last_start(tmp_path):
    run_dir = make_run(tmp_path / "run")
    assert read_run(run_dir).layout is None
    RunRecord(run_dir, Segment.begin(3, "cpu", "2.0", LAYOUTS["4 parameters"]), print).begin()
    assert read_run(run_dir).layout == LAYOUTS["4 parameters"]


def test_a_record_of_a_version_that_knew_of_no_ranks_is_read(tmp_path):
    run_dir = make_run(tmp_path / "run")
    record = json.loads((run_dir / "run.json").read_text())
    del record["segments"][0]["layout"]
    (run_dir / "run.json").write_text(json.dumps(record))
    run = read_run(run_dir)
    assert (run.state, run.layout, run.problems) == ("finished", None, [])
