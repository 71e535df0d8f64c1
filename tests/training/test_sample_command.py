"""megaselect sample: the text of a run's checkpoint, from the command line."""

import io
import os
import subprocess
import sys
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from megaselect.cli.main import main
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.training.decoding import Decoder
from megaselect.training.sampling import SamplingSettings, draw_tokens, sample_text
from megaselect.training.trained_model import load_trained_model

LINES = [f"line {number} of a text with {number * 7} words" for number in range(300)]
VOCABULARY = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Prefix of a dataset with its tokenizer beside it."""
    prefix = tmp_path_factory.mktemp("corpus") / "text"
    prefix.with_suffix(".model").write_bytes(train_tokenizer(LINES, VOCABULARY))
    tokenizer = Tokenizer(prefix.with_suffix(".model"))
    writer = IndexedDatasetWriter(prefix, VOCABULARY)
    for line in LINES:
        writer.add_document([*tokenizer.encode(line), tokenizer.end_of_document_id])
    writer.finish()
    return prefix


@pytest.fixture(scope="module")
def run_dir(run_main, corpus, tmp_path_factory):
    """Checkpoints of the steps 3, the best, and 6, in bf16."""
    run_dir = tmp_path_factory.mktemp("sampled") / "run"
    flags = ("--data.prefix", corpus, "--model.vocab-size", VOCABULARY, "--dtype", "bf16", "--training.lr", 0.03)
    steps = ("--max-steps", 6, "--training.save-interval", 3, "--training.sample-tokens", 0, "--device", "cpu")
    done = run_main(*flags, *steps, "--run-dir", run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture
def sample(capsys):
    """`sample(*flags)`: (exit code, standard output, lines of standard error)."""

    def run(*flags):
        capsys.readouterr()
        code = main(["sample", *map(str, flags)])
        output, errors = capsys.readouterr()
        return code, output, errors.splitlines()

    return run


def test_the_same_seed_gives_the_same_text_after_the_prompt(run_dir, sample):
    flags = ("--run", run_dir, "--prompt", "line 7\tof", "--tokens", 12)
    code, text, errors = sample(*flags)
    assert (code, len(errors)) == (0, 1)
    assert errors[0].startswith(f"{run_dir / 'checkpoints' / 'step-00000006'}: 12 tokens, ")
    assert text.startswith("line 7\tof")
    assert text.endswith("\n")
    assert sample(*flags)[1] == text
    assert sample(*flags, "--seed", 5)[1] != text


def test_the_text_is_what_the_model_gives_without_kept_keys(run_dir, sample):
    """From the start of a document, with the settings and the code that write the sample at the end of training."""
    trained = load_trained_model(run_dir, None, "cpu", None)
    expected = sample_text(trained.model, trained.tokenizer, 40, 1234)
    text = sample("--run", run_dir, "--tokens", 40)[1].removesuffix("\n")
    assert len(text) > 40
    assert expected.startswith(text)


@pytest.mark.parametrize(
    ("place", "which"), [("", "step-3"), ("", "3"), ("", "best"), ("checkpoints/step-00000003", None)]
)
def test_the_weights_are_those_of_the_checkpoint(run_dir, place, which):
    """On a CPU in fp32, which holds them exactly."""
    expected = load_file(
        run_dir / "checkpoints" / (which if which == "best" else "step-00000003") / "model.safetensors"
    )
    weights = dict(load_trained_model(run_dir / place, which, "cpu", None).model.named_parameters())
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name].float())


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(run_dir, sample, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(run_dir), str(copy)], check=True)
    (copy / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"cut")
    code, _, errors = sample("--run", copy, "--tokens", 2)
    assert code == 0
    assert "step-00000006 is damaged (model.safetensors has 3 bytes, " in errors[0]
    assert "): step-00000003 is taken; " in errors[0]
    assert errors[-1].startswith(f"{copy / 'checkpoints' / 'step-00000003'}: 2 tokens")
    code, text, errors = sample("--run", copy, "--checkpoint", 6)
    assert (code, text, len(errors)) == (2, "", 1)
    assert "step-00000006 is damaged (model.safetensors" in errors[0]
    assert errors[0].endswith("): name another one")
    (copy / "checkpoints" / "step-00000003" / "manifest.json").unlink()
    code, text, errors = sample("--run", copy)
    assert (code, text, len(errors)) == (2, "", 1)
    assert errors[0].endswith("step-00000003: manifest.json is missing): name another run")


def test_samples_have_seeds_in_a_row(run_dir, sample):
    one_by_one = [sample("--run", run_dir, "--tokens", 5, "--seed", seed)[1] for seed in (8, 9, 10)]
    expected = one_by_one[0] + "--- 2 of 3 ---\n" + one_by_one[1] + "--- 3 of 3 ---\n" + one_by_one[2]
    assert sample("--run", run_dir, "--tokens", 5, "--seed", 8, "--num-samples", 3)[1] == expected


def test_stop_ends_with_the_document(run_dir, sample):
    trained = load_trained_model(run_dir, None, "cpu", None)
    end, settings = trained.tokenizer.end_of_document_id, SamplingSettings(1.0, None, None)
    decoder, seed, ids = Decoder(trained.model, VOCABULARY), 0, []
    while end not in ids[1:]:
        seed += 1
        ids = list(islice(draw_tokens(decoder.next_logits, [end], settings, seed), 15))
    flags = ("--run", run_dir, "--tokens", 15, "--temperature", 1, "--top-k", 0, "--seed", seed)
    assert sample(*flags)[1] == trained.tokenizer.decode(ids) + "\n"
    assert sample(*flags, "--stop")[1] == trained.tokenizer.decode(ids[: ids.index(end)]) + "\n"


def test_a_long_prompt_is_seen_by_its_end(run_dir, sample, tmp_path, monkeypatch):
    """As a file and from standard input; what comes before the window changes nothing but the text that is shown."""
    end = "line 10 of a text with line 20 of a text with line 30"
    texts = []
    for before in ("", "some other beginning "):
        (tmp_path / "prompt.txt").write_text(before + end)
        code, text, errors = sample("--run", run_dir, "--prompt-file", tmp_path / "prompt.txt", "--tokens", 6)
        assert code == 0
        assert "tokens, and the model sees the last 16 of them" in errors[0]
        assert text.startswith(before + end)
        texts.append(text.removeprefix(before))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((before + end).encode())))
        assert sample("--run", run_dir, "--prompt-file", "-", "--tokens", 6)[1] == text
    assert texts[0] == texts[1]


ERRORS = {
    "no run": (("--run", "nowhere"), "nowhere holds no checkpoint: name the directory of a run"),
    "no such step": (("--checkpoint", 4), "--checkpoint 4: "),
    "no such name": (("--checkpoint", "../best"), "it has step-00000003, step-00000006"),
    "no such tokenizer": (("--tokenizer", "nowhere.model"), "cannot read the tokenizer: No such file or directory"),
    "temperature": (("--temperature", -0.5), "--temperature -0.5: must be 0"),
    "top-p": (("--top-p", 1.01), "--top-p 1.01: must lie in (0, 1]"),
    "top-k": (("--top-k", -1), "--top-k -1: must be at least 1"),
    "tokens": (("--tokens", 0), "--tokens 0: must be at least 1"),
    "samples": (("--num-samples", 0), "--num-samples 0: must be at least 1"),
    "seed": (("--seed", -1), "--seed -1: must be 0 or more"),
    "no number": (("--tokens", "many"), "--tokens: invalid int value: 'many'"),
    "no such prompt": (("--prompt-file", "nowhere.txt"), "--prompt-file nowhere.txt: cannot be read: No such file"),
    "prompt is no text": (("--prompt", "a\udcff"), "--prompt: byte 1 is not UTF-8"),
    "two prompts": (("--prompt", "a", "--prompt-file", "b"), "--prompt-file: not allowed with argument --prompt"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_mistake_is_one_line(run_dir, sample, case):
    flags, message = ERRORS[case]
    code, text, errors = sample("--run", run_dir, *flags)
    assert (code, text, len(errors)) == (2, "", 1)
    assert errors[0].startswith("error: ")
    assert message in errors[0]


def test_the_run_keeps_its_tokenizer(run_dir, corpus, sample, tmp_path):
    """The data may go, or be prepared anew with another one."""
    flags = ("--run", run_dir, "--prompt", "line", "--tokens", 10)
    expected, kept = sample(*flags), run_dir / "tokenizer.model"
    assert kept.read_bytes() == corpus.with_suffix(".model").read_bytes()
    corpus.with_suffix(".model").rename(tmp_path / "away.model")
    try:
        assert sample(*flags)[:2] == expected[:2]
    finally:
        (tmp_path / "away.model").rename(corpus.with_suffix(".model"))


def test_the_runs_own_tokenizer_is_used_when_the_data_was_prepared_anew(run_main, sample, tmp_path):
    """With another vocabulary, larger or smaller, and the record that says so."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(LINES) * 20)

    def prepare(vocab_size):
        command = ["data", "prepare", "--input", text, "--output", tmp_path / "data", "--vocab-size", vocab_size]
        assert main([*map(str, command), "--workers", "1"]) == 0

    prepare(290)
    flags = ("--data.prefix", tmp_path / "data", "--model.vocab-size", 290, "--max-steps", 2)
    assert run_main(*flags, "--training.sample-tokens", 0, "--run-dir", tmp_path / "run").returncode == 0
    told = ("--run", tmp_path / "run", "--prompt", "line", "--tokens", 10)
    code, expected, _ = sample(*told)
    assert code == 0
    for vocab_size in (310, 285):
        prepare(vocab_size)
        assert sample(*told)[:2] == (0, expected)
    prepare(310)
    code, text, errors = sample(*told, "--tokenizer", tmp_path / "data.model")
    assert (code, text) == (2, "")
    assert errors == [
        f"error: the tokenizer {tmp_path}/data.model has 310 pieces, and the model of {tmp_path}/run/checkpoints/"
        "step-00000002 a vocabulary of 290: name the one that the run was trained with by --tokenizer"
    ]


def test_data_without_a_tokenizer(run_main, dataset, sample, tmp_path):
    flags = ("--data.prefix", dataset, "--model.vocab-size", 256, "--max-steps", 1, "--training.eval-interval", 0)
    assert run_main(*flags, "--run-dir", tmp_path / "run").returncode == 0
    code, text, errors = sample("--run", tmp_path / "run")
    assert (code, text) == (2, "")
    assert errors == [
        f"error: {tmp_path / 'run' / 'checkpoints' / 'step-00000001'}: its data, {dataset}, has no tokenizer beside "
        "it: name a sentencepiece .model file by --tokenizer"
    ]


def test_a_reader_may_leave(run_dir, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert main(["sample", "--run", str(run_dir), "--prompt", "line", "--tokens", "3"]) == 141
    assert capsys.readouterr().err == ""


def test_a_terminal_is_not_told_what_to_do(run_dir, monkeypatch):
    """A file gets what the model writes, or was told; a terminal no control characters."""
    received = {}
    for kind, stream in (("terminal", io.StringIO()), ("file", io.StringIO())):
        stream.isatty = lambda kind=kind: kind == "terminal"
        monkeypatch.setattr("sys.stdout", stream)
        assert main(["sample", "--run", str(run_dir), "--prompt", "a\x1b[2Jb\u202e\tc", "--tokens", "1"]) == 0
        received[kind] = stream.getvalue()
    assert received["file"].startswith("a\x1b[2Jb\u202e\tc")
    assert received["terminal"].startswith("a\ufffd[2Jb\ufffd\tc")


def test_help_needs_no_torch(child_environment):
    code = (
        "import sys; from megaselect.cli.main import main\n"
        "try: main(['sample', '--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'sentencepiece'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", code], env=child_environment, capture_output=True, text=True)
    assert child.stdout.startswith("usage: megaselect sample")
    assert child.stdout.endswith("\n[]\n")
