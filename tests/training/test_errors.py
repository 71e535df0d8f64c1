"""What a user may get wrong: one line that says what and how to mend it, exit code 2, no traceback."""

import sys

import pytest
import torch

WRONG_FLAGS = {
    "unknown flag": (("--hiden-size", 3), ["unknown flag --hiden-size", "did you mean"]),
    "unknown mode": (("--recompute", "partial"), ["partial", "none", "selective", "full"]),
    "unknown module": (
        ("--recompute", "selective", "--recompute-modules", "gel"),
        ["gel:", "softmax", "core_attn", "did you mean gelu"],
    ),
    "dropout of 1": (("--model.dropout-p", "1.0"), ["1.0", "outside [0, 1)"]),
    "heads do not divide": (("--model.num-attention-heads", 3), ["(3)", "must divide", "(32)"]),
    "global batch": (("--training.global-batch-size", 5), ["(5)", "must be a multiple of", "(2)"]),
    "selective keeps more": (
        ("--recompute", "selective", "--model.dropout-p", 0),
        ["would save nothing", "--recompute-modules all"],
    ),
    "no such config": (("--config", "nowhere.yaml"), ["nowhere.yaml", "no such file", "tiny"]),
    "no such data": (("--data.prefix", "nowhere/tokens"), ["nowhere/tokens.idx does not exist"]),
    "no such tokenizer": (("--data.tokenizer", "nowhere.model"), ["nowhere.model"]),
    "triton on a CPU": (
        ("--kernel-backend", "triton", "--device", "cpu"),
        ["Triton", "device cpu", "--kernel-backend torch"],
    ),
    "head size of fused attention": (
        ("--attention", "fused", "--kernel-backend", "triton", "--device", "cpu", "--model.hidden-size", 516),
        ["head sizes to 128 in its Triton kernels", "516 / 4 heads is 129", "--attention unfused"],
    ),
    "sdpa with dropout": (("--attention", "sdpa"), ["sdpa drops nothing", "--attention fused"]),
    "chunk of nothing": (("--training.loss-chunk-tokens", 0), ["--training.loss-chunk-tokens", "0"]),
    "not a number": (("--max-steps", "many"), ["--max-steps", "many"]),
    "no steps": (("--max-steps", 0), ["--max-steps", "0"]),
    "min_lr above lr": (("--training.lr", "1e-4", "--training.min-lr", "1e-3"), ["min_lr", "0.001"]),
}


@pytest.fixture
def assert_refused(run_here, capsys, tmp_path):
    """Exit code 2, one line on stderr that holds `parts`, nothing on stdout, and no run directory."""

    def check(parts, *flags):
        run_dir = tmp_path / "run"
        assert run_here("--max-steps", 3, "--run-dir", run_dir, *flags) == 2
        output, errors = capsys.readouterr()
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1
        assert output == ""
        for part in parts:
            assert part in errors
        assert not run_dir.exists()

    return check


@pytest.mark.parametrize("case", WRONG_FLAGS)
def test_wrong_flag(case, assert_refused, monkeypatch):
    if case == "triton on a CPU":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the interpreter would serve, slowly
    flags, parts = WRONG_FLAGS[case]
    assert_refused(parts, *flags)


def test_compile_without_a_compiler(assert_refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert_refused(
        ["--compile on a CPU needs a C++ compiler", "apt-get install g++", "leave --compile out"],
        "--compile",
        "--device",
        "cpu",
    )


def test_compile_without_pythons_headers(assert_refused, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", sys.executable)  # some program
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert_refused(["Python's headers", "apt-get install python3-dev"], "--compile", "--device", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(assert_refused):
    assert_refused(["device cuda", "no GPU", "--device cpu"], "--device", "cuda")


@pytest.mark.parametrize(("tokens", "split"), [(10, "training"), (300, "validation")])
def test_seq_length_is_longer_than_a_split(assert_refused, write_dataset, tmp_path, tokens, split):
    """300 tokens leave 15 for validation, fewer than one window."""
    prefix = write_dataset(tmp_path / "short", tokens)
    assert_refused([f"the {split} split has", "seq_length 16"], "--data.prefix", prefix)


def test_data_holds_a_token_outside_the_vocabulary(run_here, write_dataset, capsys, tmp_path):
    prefix = write_dataset(tmp_path / "large", 4000, vocabulary=1000)
    assert run_here("--max-steps", 3, "--run-dir", tmp_path / "run", "--data.prefix", prefix) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert "large.bin holds token id" in errors
    assert "vocabulary of 256" in errors


def test_data_is_damaged(assert_refused, write_dataset, tmp_path):
    prefix = write_dataset(tmp_path / "cut", 4000)
    (tmp_path / "cut.idx").write_bytes((tmp_path / "cut.idx").read_bytes()[:30])
    assert_refused(["cut.idx"], "--data.prefix", prefix)


def test_tokenizer_is_larger_than_the_vocabulary(assert_refused, dataset, tmp_path):
    from megaselect.data.tokenizer import train_tokenizer

    lines = [f"line {number} of the text that a tokenizer of {number * 7} pieces reads" for number in range(300)]
    path = tmp_path / "large.model"
    path.write_bytes(train_tokenizer(lines, 300))
    parts = ["large.model has 300 pieces", "model.vocab_size is 256", "raise model.vocab_size"]
    assert_refused(parts, "--data.tokenizer", path)


@pytest.mark.parametrize("below", ["run", "deep/run"])
def test_run_directory_under_a_file(run_here, capsys, tmp_path, below):
    (tmp_path / "file").write_text("not a directory")
    assert run_here("--max-steps", 3, "--run-dir", tmp_path / "file" / below) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("error: cannot write to the run directory")
    assert len(errors.splitlines()) == 1
    assert "choose another --run-dir" in errors
    assert output == ""


def test_run_directory_is_a_file(run_here, capsys, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    assert run_here("--max-steps", 3, "--run-dir", tmp_path / "file") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: cannot write to the run directory")
    assert (tmp_path / "file").read_text() == "not a directory"


def test_metrics_file_is_not_ours(run_here, capsys, tmp_path):
    """A metrics.jsonl that holds something else is refused like any other file that cannot be used."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text("not JSON\n")
    assert run_here("--max-steps", 3, "--run-dir", run_dir) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert "metrics.jsonl" in errors


@pytest.mark.parametrize("case", ["unknown flag", "heads do not divide", "no such data"])
def test_wrong_flag_in_a_process_of_its_own(case, run_child, tmp_path):
    flags, parts = WRONG_FLAGS[case]
    child = run_child("--max-steps", 3, "--run-dir", tmp_path / "run", *flags)
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith("error: ")
    assert len(child.stderr.splitlines()) == 1
    assert "Traceback" not in child.stderr
    assert all(part in child.stderr for part in parts)


def test_debug_shows_the_traceback_and_then_the_line(run_here, capsys, tmp_path):
    assert run_here("--debug", "--run-dir", tmp_path / "run", "--data.prefix", "nowhere/tokens") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "Traceback (most recent call last):"
    assert errors[-1].startswith("error: nowhere/tokens.idx does not exist")
