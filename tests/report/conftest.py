import dataclasses
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from megaselect.report.console import ConsoleSink
from megaselect.report.sinks import Sinks
from megaselect.training.events import RunHeader, RunSummary, SavedReport

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it: wandb_records
from wandb_records import inspect_all, of_kind, run_python_in

LAYER_BYTES = 2_411_725  # 2.30 MiB

HEADER = RunHeader(
    config_name="configs/tiny.yaml",
    device="cpu, 2 threads",
    dtype="float32",
    model="4 layers, hidden 192, 6 heads, sequence 128, vocabulary 4096",
    parameters=2_587_392,
    attention="unfused",
    recompute="selective: softmax, dropout",
    data="default corpus, 1,115,394 tokens",
    run_dir="runs/tiny",
    max_steps=20,
    first_step=0,
    config={
        "model": {"num_layers": 4, "ffn_hidden_size": None, "attention": "unfused"},
        "recompute": {"mode": "selective", "modules": ["softmax", "dropout"]},
        "training": {"lr": 3e-3, "resume": "auto", "compile": False},
    },
    notes=["dropout_p 0.1 is 0.1016 here: probabilities are multiples of 1/256"],
)
REPORT = SavedReport(
    predicted={f"layers.{layer}": LAYER_BYTES for layer in range(4)},
    measured={f"layers.{layer}": LAYER_BYTES for layer in range(4)},
    predicted_total=4 * LAYER_BYTES + 1000,
    measured_total=4 * LAYER_BYTES + 1000,
    alternatives={
        "none": 3_722_445,
        "selective": LAYER_BYTES,
        "core_attn dropout": 1_226_833,
        "all": 1_029_841,
        "full": 196_608,
    },
    setting="selective",
)
SUMMARY = RunSummary(
    steps=20,
    tokens=20_480,
    seconds=64.6,
    final_loss=6.5,
    valid_loss=6.75,
    best_valid_loss=6.25,
    tokens_per_s=5650.4,
    step_ms=181.25,
    saved_bytes=4 * LAYER_BYTES + 1000,
    peak_bytes=3 * 2**30,
    peak_kind="of tensors",
    mfu=None,
    hfu=None,
    recompute="selective: softmax, dropout",
    sample="First Citizen:\nSpeak.",
    run_dir="runs/tiny",
    stopped_by=None,
)


@pytest.fixture
def header():
    """Builds a RunHeader; keywords replace its fields."""
    return lambda **changes: dataclasses.replace(HEADER, **changes)


@pytest.fixture
def report():
    """Builds a SavedReport in which all is equal; keywords replace its fields."""
    return lambda **changes: dataclasses.replace(REPORT, **changes)


@pytest.fixture
def summary():
    """Builds a RunSummary; keywords replace its fields."""
    return lambda **changes: dataclasses.replace(SUMMARY, **changes)


def _metrics(step, **changes):
    return {
        "step": step,
        "samples": 8 * step,
        "tokens": 1024 * step,
        "loss": 8.5 - step / 10,
        "grad_norm": 1.25,
        "lr": 1e-3,
        "step_ms": 500.0,
        "tokens_per_s": 2048.0,
        "mfu": None,
        "hfu": None,
        "saved_bytes": REPORT.measured_total,
        "peak_bytes": None,
        **changes,
    }


def play(sink, steps, interrupted=False, **header):
    """Hands a sink a whole run."""
    sink.start(dataclasses.replace(HEADER, **header))
    sink.saved(REPORT)
    for step in steps:
        sink.step(_metrics(step, grad_norm=None))
    sink.evaluation(steps[-1], 6.75)
    sink.note("for the console")
    sink.finish(dataclasses.replace(SUMMARY, stopped_by="SIGINT" if interrupted else None))


@pytest.fixture
def metrics():
    """Builds the metrics of a step; keywords replace values."""
    return _metrics


@pytest.fixture
def run_python(tmp_path):
    """run_python_in the test's own folder."""
    return partial(run_python_in, tmp_path)


RECORD = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from comparison_results import COMPARISON
from conftest import play
from megaselect.report.wandb_comparison import log_comparison
from megaselect.report.wandb_sink import WandbSink
play(WandbSink('offline', 'project-x', 'group y', 'runs/tiny', lambda note: None), [1, 2])
log_comparison(COMPARISON, 'auto', 'project-x', 'group y', 'out', print, Path('compare.html'))
"""
HTML = "<!doctype html><title>compare</title><script>draw()</script>"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """What the SDK wrote, offline, for the comparison of comparison_results and a training run of the same group."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "compare.html").write_text(HTML)
    output = run_python_in(folder, RECORD)
    assert (output.returncode, output.stderr) == (0, "")
    folders = [*(folder / "out/wandb").glob("offline-run-*"), *(folder / "runs/tiny/wandb").glob("offline-run-*")]
    runs = inspect_all(partial(run_python_in, folder), folders)
    named = {of_kind(records, "run")[0]["display_name"]: records for records in runs}
    training = named.pop("selective")
    return SimpleNamespace(stdout=output.stdout, runs=named, training=training, folder=folder, html=HTML)


@pytest.fixture(name="play")
def play_into_console(header, report, metrics, summary):
    """Plays a whole run into a console."""

    def run(console, saved=None, **summary_changes):
        sink = Sinks([ConsoleSink(log_interval=10, console=console)])
        sink.start(header())
        sink.saved(saved or report())
        for step in range(1, 21):
            sink.step(metrics(step, step_ms=9000.0 if step == 1 else 500.0))
            if step == 10:
                sink.evaluation(step, 7.75)
        sink.finish(summary(**summary_changes))

    return run
