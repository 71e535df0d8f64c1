"""`megaselect compare` as a user meets it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from megaselect.cli.main import main
from megaselect.report.compare_table import print_comparison


def failing(capsys, *flags):
    code = main(["compare", *flags])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    return err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--steps", "-1"], "--steps -1: must be at least 1"),
        (["--warmup", "0"], "--warmup 0: must be at least 1"),
        (["--rounds", "two"], "--rounds: invalid int value: 'two'; --help lists the flags"),
        (["--run-dir", "x"], "--run-dir: megaselect compare does not use it; megaselect train does"),
        (["--memory-limit", "1GiB"], "--memory-limit is for --largest-micro-batch: give both, or neither"),
        (
            ["--largest-micro-batch", "--memory-limit", "much"],
            "--memory-limit much: must be a size such as 24GiB; the units are KiB to TiB, K to T (the same), KB to TB",
        ),
        (
            ["--largest-micro-batch", "--device", "cpu"],
            "--largest-micro-batch on a CPU needs a limit, or the machine would run out of memory: --memory-limit 2GiB",
        ),
        (
            ["--memory-snapshot", "--device", "cpu"],
            "--memory-snapshot needs a GPU, whose allocator records it: leave it out on a CPU",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert failing(capsys, *flags) == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_names_the_known_ones_and_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    err = failing(capsys, "--settings", "none", "sometimes")
    assert err.startswith(
        "error: --settings 'sometimes': unknown setting; a setting is none, selective, all, full, full sqrt or auto"
    )
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert (
        failing(capsys, "--out", str(out)) == f"error: cannot write to {out}: Not a directory; choose another --out\n"
    )


def test_a_missing_plotly_is_named_with_its_extra_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plotly", None)  # as where it is not installed
    assert failing(capsys) == (
        "error: the Python package plotly is not installed; `pip install '.[report]'` installs what is needed\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_torch():
    code = "import sys; from megaselect.cli.main import main\ntry: main(['compare', '--help'])\nexcept SystemExit: pass"
    child = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert (child.stderr, child.stdout.splitlines()[-1]) == ("", "False")
    assert "--largest-micro-batch" in child.stdout


def test_it_prints_the_json_that_it_writes_and_progress_apart(compared):
    assert compared.printed == json.loads((compared.out / "compare.json").read_text())
    assert [path.name for path in sorted(compared.out.iterdir())] == ["compare.html", "compare.json"]
    lines = compared.progress.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["[1/2] round 1, none", "[2/2] round 1, full"]


def test_modes_are_equal_to_the_bit_and_bytes_are_those_predicted(compared):
    none, full = compared.result.settings
    assert none.agreement is None
    assert full.agreement.equal
    assert full.agreement.loss_differences == (0.0, 0.0, 0.0)
    assert len(set(none.losses)) == 3
    assert none.weights_sha256 == full.weights_sha256
    assert (none.saved.measured, full.saved.measured) == (none.saved.predicted, full.saved.predicted)
    assert full.saved.measured < none.saved.measured
    assert full.hardware_flops > full.model_flops == none.hardware_flops
    equal = "Every recompute setting trained bitwise equal to the setting `none` under the same attention:"
    assert compared.result.verdict.startswith(equal)


def test_a_process_is_not_weighed_with_the_one_that_started_it(compared):
    """Which holds a GiB more than it needs; on Linux getrusage would count it."""
    for setting in compared.result.settings:
        assert setting.peak.allocated < setting.peak.rss < 2**30


def test_the_record_says_how_it_was_measured(compared):
    context = compared.result.context
    assert (context.steps, context.warmup_steps, context.rounds, context.tokens_per_step) == (2, 1, 1, 4 * 24)
    assert context.command.startswith("megaselect compare --model.num-layers 2")
    assert (context.config["model"]["hidden_size"], context.config_name, context.dtype) == (32, "tiny", "float32")
    assert context.device == "cpu, 1 thread"


def test_the_table_fits_80_columns(compared):
    console = Console(width=80, record=True, file=io.StringIO())
    print_comparison(compared.result, console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    assert "reserved" not in "".join(lines)
    headline = next(line.split() for line in lines if line.startswith("full "))
    full = compared.result.setting("full")
    assert headline[1] == f"{full.saved.measured / 2**20:#.3g}"
    assert headline[-1] == "equal"


def test_the_page_is_written_beside_it(compared):
    page = Path(compared.out, "compare.html").read_text()
    assert compared.result.verdict in page
