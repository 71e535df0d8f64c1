"""A continued run is the run that was never stopped, to the bit; what cannot be continued is refused in one line."""

import os
import shutil
import signal
import time

import pytest
from small_disks import mounted, remount
from tiny_checkpoints import flip

from megaselect.training.checkpoint_files import open_checkpoint

LAST_ALONE = ("--training.sample-tokens", 0, "--no-training.keep-best")
FOUR = ("--max-steps", 4, "--training.save-interval", 4, *LAST_ALONE)
EIGHT = ("--max-steps", 8, "--training.save-interval", 4, *LAST_ALONE)
POLL_SECONDS = 0.005


@pytest.fixture
def whole_run(run_here, tmp_path):
    """`whole_run(*flags)`: eight steps in one go; returns the run directory."""

    def run(*flags):
        assert run_here(*EIGHT, *flags, "--run-dir", tmp_path / "whole") == 0
        return tmp_path / "whole"

    return run


@pytest.fixture
def four_steps(run_here, tmp_path):
    """`four_steps(*flags)`: the first four steps; returns the run directory."""

    def run(*flags):
        assert run_here(*FOUR, *flags, "--run-dir", tmp_path / "parts") == 0
        return tmp_path / "parts"

    return run


@pytest.fixture
def assert_refused(run_here, capsys):
    """The run ends with exit code 2 and one line on stderr, which holds `part`."""

    def check(part, *flags):
        capsys.readouterr()
        assert run_here(*flags) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1
        assert part in errors

    return check


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resumed_run_equals_the_run_in_one_go(run_here, whole_run, four_steps, assert_same_run, dtype):
    whole, parts = whole_run("--dtype", dtype), four_steps("--dtype", dtype)
    assert run_here(*EIGHT, "--dtype", dtype, "--run-dir", parts, "--resume", "auto") == 0
    assert_same_run(parts, whole)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resuming_in_another_recompute_mode_gives_the_same_bits(
    run_here, whole_run, four_steps, assert_same_run, read_metrics, dtype
):
    whole, parts = whole_run("--dtype", dtype), four_steps("--dtype", dtype)
    assert run_here(*EIGHT, "--dtype", dtype, "--recompute", "full", "--run-dir", parts) == 0
    assert_same_run(parts, whole)
    saved = [line["saved_bytes"] for line in read_metrics(parts)]
    assert saved[3] > saved[4]


def test_resuming_from_a_path_leaves_the_run_that_it_came_from(
    run_here, whole_run, four_steps, read_metrics, read_tensors, tmp_path
):
    whole, parts = whole_run(), four_steps()
    for number, path in enumerate((parts, parts / "checkpoints" / "step-00000004")):
        branch = tmp_path / f"branch{number}"
        assert run_here(*EIGHT, "--run-dir", branch, "--resume", path) == 0
        continued = [(line["step"], line["loss"]) for line in read_metrics(branch)]
        assert continued == [(line["step"], line["loss"]) for line in read_metrics(whole)[4:]]
        expected = read_tensors(whole, 8)
        assert all(tensor.equal(expected[name]) for name, tensor in read_tensors(branch, 8).items())
    assert [line["step"] for line in read_metrics(parts)] == [1, 2, 3, 4]
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["step-00000004"]


def test_steps_after_the_newest_checkpoint_are_done_again_and_written_once(
    run_here, whole_run, assert_same_run, tmp_path
):
    """As after a kill: metrics reach further than the checkpoints, and end in the middle of a line."""
    whole, killed = whole_run(), tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000008")
    lines = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    assert run_here(*EIGHT, "--run-dir", killed) == 0
    assert_same_run(killed, whole)


def test_an_unfinished_checkpoint_is_passed_over(run_here, whole_run, four_steps, assert_same_run):
    whole, parts = whole_run(), four_steps()
    unfinished = parts / "checkpoints" / ".step-00000006.partial"  # not one that this run writes again
    shutil.copytree(whole / "checkpoints" / "step-00000008", unfinished)
    (unfinished / "model.safetensors").write_bytes(b"")
    assert run_here(*EIGHT, "--run-dir", parts) == 0
    assert_same_run(parts, whole)
    assert not unfinished.exists()


def test_two_checkpoints_are_kept(run_here, tmp_path):
    flags = ("--max-steps", 5, "--training.save-interval", 1, *LAST_ALONE)
    assert run_here(*flags, "--run-dir", tmp_path / "run") == 0
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005"]


def test_going_back_in_the_same_directory_drops_the_checkpoints_ahead(run_here, tmp_path, read_metrics):
    """Their steps are cut from the metrics; a resumed run must not jump to them."""
    run_dir, flags = tmp_path / "run", ("--training.save-interval", 2, *LAST_ALONE)
    back = (*flags, "--training.lr", "1e-4", "--training.min-lr", 0, "--run-dir", run_dir)
    assert run_here("--max-steps", 8, *flags, "--run-dir", run_dir) == 0
    assert run_here("--max-steps", 7, *back, "--resume", run_dir / "checkpoints" / "step-00000006") == 0
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007"]
    assert run_here("--max-steps", 9, *back) == 0
    assert [line["step"] for line in read_metrics(run_dir)] == list(range(1, 10))


def test_a_finished_run_says_how_to_go_on(run_here, four_steps, read_metrics, capsys):
    parts = four_steps()
    before = (parts / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert run_here(*FOUR, "--run-dir", parts) == 0
    output = capsys.readouterr().out
    assert "already at step 4: give a larger --max-steps to go on" in " ".join(output.split())
    assert (parts / "metrics.jsonl").read_text() == before


def test_resume_none_does_not_overwrite_a_run(four_steps, assert_refused):
    parts = four_steps()
    before = (parts / "metrics.jsonl").read_text()
    assert_refused("already holds a run (up to step-00000004)", *EIGHT, "--run-dir", parts, "--resume", "none")
    assert (parts / "metrics.jsonl").read_text() == before


def test_resume_from_a_path_without_a_checkpoint(assert_refused, tmp_path):
    assert_refused("no checkpoint there", *EIGHT, "--run-dir", tmp_path / "run", "--resume", tmp_path)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--model.hidden-size", 64), "model.hidden_size 32 -> 64"),
        (("--model.num-layers", 3), "model.num_layers 2 -> 3"),
        (("--model.num-attention-heads", 2), "model.num_attention_heads 4 -> 2"),
        (("--model.ffn-hidden-size", 64), "model.ffn_hidden_size"),
        (("--model.seq-length", 8), "model.seq_length 16 -> 8"),
        (("--model.vocab-size", 300), "model.vocab_size 256 -> 300"),
        (("--seed", 1), "training.seed 1234 -> 1"),
        (("--dtype", "bf16"), "training.dtype fp32 -> bf16"),
    ],
)
def test_another_training_is_not_a_continuation(four_steps, assert_refused, flags, part):
    assert_refused(part, *EIGHT, *flags, "--run-dir", four_steps())


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_another_micro_batch_size_changes_the_order_of_sums_alone(
    run_here, four_steps, read_metrics, capsys, tmp_path, micro_batch
):
    """At the same global batch, samples and masks are the same. Another micro-batch only groups the same terms.

    Two sums of n positive terms, in any two orders, differ by less than 2 (n - 1) u of their value, u = 2**-24 in fp32
    (Higham, Accuracy and Stability of Numerical Algorithms, 4.2). The mean loss has n = tokens of the global batch;
    each element of a gradient is a sum over the same tokens, whose signs make it smaller than its terms, and whose
    roundings, of both signs, make up for that: their sum grows as the root of n. One mask or one sample more or less
    changes a loss by a thousandth or more, a hundred times the bound.
    """
    parts = four_steps()
    runs = {}
    for size in (2, micro_batch):
        runs[size] = tmp_path / f"micro-batch-{size}"
        flags = ("--training.micro-batch-size", size, "--resume", parts)
        assert run_here(*EIGHT, *flags, "--run-dir", runs[size]) == 0
    assert f"training.micro_batch_size 2 -> {micro_batch}" in " ".join(capsys.readouterr().out.split())
    bound = 2 * (4 * 16 - 1) * 2**-24
    expected, others = (read_metrics(runs[size]) for size in (2, micro_batch))
    assert [line["step"] for line in others] == [5, 6, 7, 8]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in others] == pytest.approx([line[name] for line in expected], rel=bound, abs=0)


def test_a_larger_model_is_refused_before_any_weight_is_made(four_steps, assert_refused, monkeypatch):

    def never(*_):
        raise AssertionError("weights are being made")

    parts = four_steps()
    monkeypatch.setattr("megaselect.training.run.build_distributed", never)
    large = ("--model.hidden-size", 100_000, "--model.num-layers", 8)
    differing = "model.num_layers 2 -> 8, model.hidden_size 32 -> 100000, model.ffn_hidden_size 128 -> 400000"
    assert_refused(differing, *EIGHT, *large, "--run-dir", parts)


def test_other_data_needs_another_run_directory(
    run_here, four_steps, assert_refused, write_dataset, read_metrics, capsys, tmp_path
):
    parts = four_steps()
    other = ("--data.prefix", write_dataset(tmp_path / "other", 5000))
    assert_refused("was trained on other data (data.prefix", *EIGHT, *other, "--run-dir", parts)
    branch = tmp_path / "branch"
    assert run_here(*EIGHT, *other, "--run-dir", branch, "--resume", parts) == 0
    assert "note: other data than the checkpoint's: data.prefix" in " ".join(capsys.readouterr().out.split())
    assert [line["step"] for line in read_metrics(branch)] == [5, 6, 7, 8]


def test_a_damaged_checkpoint_is_passed_over_and_said_so(run_here, whole_run, assert_same_run, capsys, tmp_path):
    """The run goes on from the one before, to the same bits, and replaces the damaged one by saving its step again."""
    whole, damaged = whole_run(), tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    last = damaged / "checkpoints" / "step-00000008"
    flip(last / "model.safetensors", 1000)
    capsys.readouterr()
    assert run_here(*EIGHT, "--run-dir", damaged) == 0
    output = "".join(capsys.readouterr().out.split())
    said = f"note: checkpoint {last} is damaged (model.safetensors: its bytes have changed, by their SHA-256): step"
    assert "".join(said.split()) in output
    assert_same_run(damaged, whole)
    open_checkpoint(last)


def test_a_run_whose_only_checkpoint_is_damaged_is_left_as_it_was(four_steps, assert_refused):
    parts = four_steps()
    last = parts / "checkpoints" / "step-00000004"
    flip(last / "optimizer.safetensors")
    before = (parts / "metrics.jsonl").read_text()
    refusal = f"every checkpoint in {parts / 'checkpoints'} is damaged (step-00000004: optimizer.safetensors: its bytes"
    assert_refused(refusal, *EIGHT, "--run-dir", parts)
    assert_refused("choose another --run-dir, or move them away to start anew", *EIGHT, "--run-dir", parts)
    assert_refused(f"checkpoint {last} is damaged", *EIGHT, "--run-dir", parts, "--resume", last)
    assert (parts / "metrics.jsonl").read_text() == before


def test_the_best_can_be_continued_by_name(run_here, read_metrics, tmp_path):
    run_dir, branch = tmp_path / "run", tmp_path / "branch"
    flags = ("--training.sample-tokens", 0, "--training.save-interval", 1, "--training.keep-checkpoints", 1)
    assert run_here("--max-steps", 5, *flags, "--run-dir", run_dir) == 0
    losses = {line["step"]: line["valid_loss"] for line in read_metrics(run_dir) if "valid_loss" in line}
    best = min(losses, key=losses.get)
    assert run_here("--max-steps", 7, *flags, "--run-dir", branch, "--resume", run_dir / "checkpoints" / "best") == 0
    assert read_metrics(branch)[0]["step"] == best + 1


def test_a_full_disk_costs_saves_and_not_the_run(run_here, whole_run, assert_same_run, capsys, tmp_path):
    """The whole run directory lies on a disk that holds one checkpoint; then somebody makes room and it goes on."""
    whole = whole_run()
    with mounted(tmp_path / "disk", 700 * 1024) as disk:
        capsys.readouterr()
        assert run_here(*EIGHT, "--run-dir", disk / "run") == 2
        output, errors = capsys.readouterr()
        assert "No space left on device; step-00000004 is whole: free some space" in " ".join(output.split())
        assert errors.startswith("error: cannot write the checkpoint ")
        assert "step-00000004 is whole: free some space, then continue with --resume auto" in errors
        assert len(errors.splitlines()) == 1
        remount(disk, "size=8m")
        assert run_here(*EIGHT, "--run-dir", disk / "run") == 0
        assert_same_run(disk / "run", whole)


def test_ffn_size_may_be_spelled_out(run_here, whole_run, four_steps, assert_same_run):
    """4 x hidden size is what its absence means."""
    whole, parts = whole_run(), four_steps()
    assert run_here(*EIGHT, "--model.ffn-hidden-size", 128, "--run-dir", parts) == 0
    assert_same_run(parts, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_its_step_and_continues_to_the_same_bits(
    server, small_flags, run_here, read_metrics, assert_same_run, tmp_path, number, code
):
    stopped, whole, output = tmp_path / "stopped", tmp_path / "whole", tmp_path / "output"
    flags = ("--training.eval-interval", 0, "--training.sample-tokens", 0, "--max-steps", 100_000)
    run = server.start(["train", *small_flags, *flags, "--run-dir", stopped], stopped, out=output)
    try:
        _wait_for_lines(stopped / "metrics.jsonl", 3, server)
        os.kill(run, number)
        assert server.has_ended(600)
    finally:
        if not server.has_ended():
            os.kill(run, signal.SIGKILL)
        ended = server.wait()
    assert (ended, server.log(stopped).read_text()) == (code, "")
    assert "interrupted" in output.read_text()
    done = read_metrics(stopped)[-1]["step"]
    assert (stopped / "checkpoints" / f"step-{done:08d}" / "state.json").is_file()
    total = ("--max-steps", done + 3, "--training.eval-interval", 0, "--training.sample-tokens", 0)
    assert run_here(*total, "--run-dir", stopped) == 0
    assert run_here(*total, "--run-dir", whole) == 0
    assert_same_run(stopped, whole, done + 3)


def _wait_for_lines(path, count, server, seconds=600):
    """Until the file has so many lines; the run must go on."""
    deadline = time.monotonic() + seconds
    while not path.exists() or path.read_text().count("\n") < count:
        assert not server.has_ended()
        assert time.monotonic() < deadline, "no step was done in time"
        time.sleep(POLL_SECONDS)
