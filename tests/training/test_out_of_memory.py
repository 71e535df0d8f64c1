"""Memory that runs out: a message with what would fit, or the same run with a stronger mode, to the bit."""

import gc
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from short_of_memory import STEADY_ALLOCATOR
from shortage import Shortage
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from megaselect.config import TrainingConfig
from megaselect.host_memory import available_bytes
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import make_plan
from megaselect.recomputation.presets import PRESETS
from megaselect.training import loop
from megaselect.training.adamw import REGISTER_ELEMENTS
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.units import MIB_BYTES, size

FP32_BYTES = 4
FOUR = ("--max-steps", 4, "--training.save-interval", 4, "--training.sample-tokens", 0, "--no-training.keep-best")
EIGHT = ("--max-steps", 8, *FOUR[2:])
STEP_UP = ("--on-oom", "step-up")
# Two micro-batches a step. Memory runs out in the first one of the run, in the backward pass of the second, in the
# optimizer, and in the second micro-batch of another step; each time the step is taken again.
EVERYWHERE = {1: "forward", 3: "backward", 7: "norm", 11: "forward"}


@pytest.fixture
def run_short(run_here, monkeypatch):
    """`run_short(points, *flags)`: memory runs out at the points of a Shortage; returns the exit code."""

    def run(points, *flags, **more):
        with monkeypatch.context() as patch:
            shortage = Shortage(patch, points, **more)
            code = run_here(*flags)
        assert not shortage.points  # each was met
        return code

    return run


@pytest.fixture
def reference(run_here, tmp_path):
    """`reference(*flags)`: the directory of a run with memory enough."""

    def run(*flags):
        assert run_here(*flags, "--run-dir", tmp_path / "reference") == 0
        return tmp_path / "reference"

    return run


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_run_that_steps_up_is_the_run_that_never_ran_out(
    run_short, reference, assert_same_run, tmp_path, capsys, dtype
):  # fmt: skip
    flags = (*FOUR, "--dtype", dtype)
    expected = reference(*flags)
    capsys.readouterr()
    assert run_short(EVERYWHERE, *flags, *STEP_UP, "--run-dir", tmp_path / "short") == 0
    assert_same_run(tmp_path / "short", expected, steps=4)
    output = capsys.readouterr().out
    assert " ".join(output.split()).count("It is taken again with") == len(EVERYWHERE)
    assert re.search(r"recompute +full$", output, re.MULTILINE)


def test_a_run_that_steps_up_before_and_after_it_is_resumed_is_the_run_in_one_go(
    run_short, reference, assert_same_run, tmp_path
):  # fmt: skip
    expected, run_dir = reference(*EIGHT), tmp_path / "short"
    assert run_short({4: "backward"}, *FOUR, *STEP_UP, "--run-dir", run_dir) == 0
    assert run_short({4: "norm", 8: "forward"}, *EIGHT, *STEP_UP, "--run-dir", run_dir) == 0
    assert_same_run(run_dir, expected)


@pytest.mark.compiles
@pytest.mark.soak
def test_compiled_layers_are_compiled_again(run_short, reference, assert_same_run, tmp_path):
    flags = (*FOUR, "--compile")
    expected = reference(*flags)
    points = {2: "backward", 5: "forward", 9: "norm"}
    assert run_short(points, *flags, *STEP_UP, "--run-dir", tmp_path / "short") == 0
    assert_same_run(tmp_path / "short", expected, steps=4)


def test_each_attempt_is_told_in_a_note_and_the_new_bytes_are_measured(run_short, tmp_path, capsys):
    assert run_short({4: "forward"}, *FOUR, *STEP_UP, "--run-dir", tmp_path) == 0
    output = capsys.readouterr().out
    before, after = output.split("note: step 2 ran out of memory")
    assert "It is taken again with selective, which saves" in " ".join(after.split())
    assert before.count("(equal to the byte)") == after.count("(equal to the byte)") == 1
    assert "other settings:  selective" in before
    assert "other settings:  none" in after
    assert "selective" not in after.partition("other settings:")[2].partition("step 4/4")[0]
    assert max(len(line) for line in output.splitlines() if str(tmp_path) not in line) <= 80
    assert re.search(r"^  recompute +selective: softmax, dropout$", after, re.MULTILINE)


def test_what_was_done_before_a_run_stops_for_memory_is_saved(
    run_short, run_here, reference, assert_same_run, tmp_path
):  # fmt: skip
    expected, run_dir = reference(*FOUR), tmp_path / "short"
    assert run_short({6: "backward"}, *FOUR, "--run-dir", run_dir) == 2
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000002"]
    assert run_here(*FOUR, "--recompute", "full", "--run-dir", run_dir) == 0
    assert_same_run(run_dir, expected, steps=4)


def test_a_step_that_ran_out_while_it_changed_the_weights_is_not_taken_again(run_short, tmp_path, capsys):
    assert run_short({4: "update"}, *FOUR, *STEP_UP, "--run-dir", tmp_path) == 2
    assert capsys.readouterr().err == (
        "error: step 2 ran out of memory (1073741824.00 GiB more was asked for) while it changed the weights: continue "
        "from the last checkpoint, with a stronger --recompute or a smaller --training.micro-batch-size\n"
    )
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_the_update_allocates_no_more_than_the_rests_of_tensors(monkeypatch):
    """So it cannot run out of memory, which it could not be repeated after."""
    model = nn.Sequential(nn.Linear(301, 403), nn.LayerNorm(403))
    optimizer = MixedPrecisionAdamW(model, TrainingConfig())
    update, sizes = optimizer._adam.step, []

    def watched():
        with torch.profiler.profile(profile_memory=True) as profiler:
            update()
        events = profiler.profiler.kineto_results.events()
        sizes.extend(event.nbytes() for event in events if event.name() == "[memory]")

    monkeypatch.setattr(optimizer._adam, "step", watched)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step(1e-3)
    assert 0 < max(sizes) <= 4 * REGISTER_ELEMENTS * len(list(model.parameters()))


def test_nothing_of_the_failed_step_is_alive_when_the_next_one_is_prepared(run_short, monkeypatch, tmp_path):
    """Not by the error's traceback, nor by a cycle: the step would find less memory than the first time."""
    inputs, alive = [], []
    forward, step_up = loop.Trainer._forward, loop.step_up

    def watched_forward(trainer, batch):
        for layer in trainer.model.layers:
            layer.register_forward_pre_hook(
                lambda _, arguments: inputs.append(StorageWeakRef(arguments[0].untyped_storage()))
            )
        return forward(trainer, batch)

    def watched_step_up(*arguments):
        alive.append([not reference.expired() for reference in inputs])
        return step_up(*arguments)

    monkeypatch.setattr(loop.Trainer, "_forward", watched_forward)
    monkeypatch.setattr(loop, "step_up", watched_step_up)
    gc.disable()
    try:
        assert run_short({1: "backward"}, *FOUR, *STEP_UP, "--run-dir", tmp_path) == 0
    finally:
        gc.enable()
    assert alive == [[False, False]]


def test_an_evaluation_and_a_model_that_do_not_fit_say_so(run_short, capsys, tmp_path):
    assert run_short({}, *FOUR, "--run-dir", tmp_path, evaluating=True) == 2
    assert capsys.readouterr().err == (
        "error: ran out of memory while evaluating (1073741824.00 GiB more was asked for): it saves nothing for "
        "backward; lower --training.micro-batch-size, or set --training.loss-chunk-tokens\n"
    )
    assert run_short({}, *FOUR, "--model.hidden-size", 2**30, "--run-dir", tmp_path / "large") == 2
    assert re.fullmatch(
        r"error: ran out of memory while building the model \([\d.]+ GiB more was asked for\): weights, gradients and "
        r"optimizer state take [\d.]+ GiB, whatever the recompute setting; choose a smaller model, or free memory that "
        r"other processes hold\n",
        capsys.readouterr().err,
    )


# Twelve layers keep 60 MiB with `none`, 4 MiB with `all` and less with `full`.
LONG_MODEL = {"num_layers": 12, "hidden_size": 16, "seq_length": 256, "vocab_size": 256}
LONG = (
    *(word for name, value in LONG_MODEL.items() for word in (f"--model.{name.replace('_', '-')}", str(value))),
    *("--model.num-attention-heads", "4", "--training.micro-batch-size", "2", "--training.global-batch-size", "4"),
    *("--max-steps", "2", "--training.save-interval", "2", "--training.eval-interval", "0", "--wandb", "disabled"),
    *("--training.sample-tokens", "0", "--training.warmup-steps", "1", "--training.schedule", "constant"),
)
LIMIT_MIB = 30


def test_a_checkpoint_that_does_not_fit_is_not_called_damaged(run_here, reference, monkeypatch, capsys):
    run_dir = reference(*FOUR)
    monkeypatch.setattr(MixedPrecisionAdamW, "pieces", lambda *_: torch.empty(2**60))
    capsys.readouterr()
    assert run_here(*FOUR, "--run-dir", run_dir) == 2
    assert capsys.readouterr().err.startswith("error: ran out of memory while building the model (")


@pytest.fixture(scope="module")
def long_flags(write_dataset, tmp_path_factory):
    return (*LONG, "--data.prefix", str(write_dataset(tmp_path_factory.mktemp("data") / "tokens", 20_000)))


@pytest.fixture(scope="module")
def run_limited(child_environment):
    """`run_limited(mib, home, *runs)`: short_of_memory.py in the directory `home`, with the flags of each run."""

    def run(mib, home, *runs):
        words = [word for flags in runs for word in ("--", *map(str, flags))][1:]
        command = [sys.executable, str(Path(__file__).with_name("short_of_memory.py")), str(mib), *words]
        environment = child_environment | STEADY_ALLOCATOR
        return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="module")
def limited(run_limited, long_flags, tmp_path_factory):
    """A run that stops and one that steps up, where `none` does not fit: the directory, and what the process said."""
    home = tmp_path_factory.mktemp("limited")
    runs = ((*long_flags, "--run-dir", "stop"), (*long_flags, *STEP_UP, "--run-dir", "short"))
    return home, run_limited(LIMIT_MIB, home, *runs)


def test_without_step_up_a_line_says_what_each_mode_keeps_and_what_fits(limited, make_config):
    _, child = limited
    assert child.stdout.count("exit code 2\n") == 1
    (message,) = child.stderr.splitlines()
    # Which allocation is the one too many depends on the threads' timing, and Python's own say no number.
    assert re.match(r"error: step 1 ran out of memory \([^()]+\) with recompute none\. ", message)
    overrides = {f"model__{name}": value for name, value in LONG_MODEL.items()}
    shape = LayerShape.of(make_config(**overrides), FP32_BYTES)
    kept = {name: saved_bytes(shape, make_plan(settings, 12)) for name, settings in PRESETS.items()}
    listed = ", ".join(f"{name} {size(count)}" for name, count in kept.items())
    assert f"A micro-batch of 2 saves for backward: {listed}. By their predicted peak these fit into the " in message
    assert "--recompute selective --recompute-modules all (" in message
    assert "--recompute none" not in message
    assert message.endswith("; --on-oom step-up takes the next stronger mode by itself")


def test_where_memory_really_is_short_a_run_steps_up_and_is_the_one_that_had_enough(
    limited, long_flags, reference, assert_same_run
):  # fmt: skip
    home, child = limited
    assert child.stdout.endswith("exit code 0\n")
    assert "note: step 1 ran out of memory (" in child.stdout
    assert_same_run(home / "short", reference(*long_flags), steps=2)


@pytest.mark.soak
def test_wherever_memory_runs_out_a_run_ends_with_the_same_bits_or_with_one_line(
    run_limited, long_flags, reference, assert_same_run, tmp_path
):  # fmt: skip
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    expected, chosen = reference(*long_flags), random.Random(seed)
    codes = set()
    for number in range(20):
        home = tmp_path / f"{number}"
        home.mkdir()
        child = run_limited(chosen.uniform(2, 70), home, (*long_flags, *STEP_UP, "--run-dir", "short"))
        if child.returncode == -signal.SIGSEGV and "in _philox" in child.stderr:
            print(f"run {number}: NumPy crashed (see short_of_memory.py)")
            continue
        code = child.stdout.splitlines()[-1]
        codes.add(code)
        if code == "exit code 0":
            assert_same_run(home / "short", expected, steps=2)
        else:
            assert code == "exit code 2", (child.returncode, child.stderr)
            assert re.fullmatch(r"error: (step \d+ )?ran out of memory .*\n", child.stderr)
    assert "exit code 0" in codes


@pytest.mark.parametrize(("limit", "field"), [("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)])
def test_a_limit_of_the_process_is_memory_that_is_not_available(child_environment, limit, field):
    code = (
        "import resource; from pathlib import Path; from megaselect.host_memory import available_bytes;"
        f"pages = int(Path('/proc/self/statm').read_text().split()[{field}]); wanted = pages * 4096 + {64 * MIB_BYTES};"
        f"resource.setrlimit(resource.{limit}, (wanted, wanted)); print(available_bytes())"
    )
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, env=child_environment, capture_output=True, text=True, check=True)
    assert 60 * MIB_BYTES < int(child.stdout) <= 64 * MIB_BYTES < available_bytes()
