"""megaselect evaluate: the numbers of a run, of its own data and of others', and what it refuses."""

import io
import json
import math

import pytest
import sentencepiece
import torch

from megaselect.cli.main import main
from megaselect.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megaselect.data.piece_bytes import piece_bytes
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.training.trained_model import load_saved_model

LINES = [f"line {number} of a text\twith {number * 7} words — ünd ähnlich" for number in range(300)]
VOCABULARY, SEQUENCE, MICRO_BATCH = 300, 16, 2
EVAL_SAMPLES = 4  # of the small run


def write(prefix, tokenizer, lines):
    prefix.with_suffix(".model").write_bytes(tokenizer.model_file)
    writer = IndexedDatasetWriter(prefix, tokenizer.vocab_size)
    for line in lines:
        writer.add_document([*tokenizer.encode(line), tokenizer.end_of_document_id])
    writer.finish()
    return prefix


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def tokenizer(home):
    (home / "made.model").write_bytes(train_tokenizer(LINES, VOCABULARY))
    return Tokenizer(home / "made.model")


@pytest.fixture(scope="module")
def corpus(home, tokenizer):
    """Prefix of a dataset of 300 documents."""
    return write(home / "text", tokenizer, LINES)


@pytest.fixture(scope="module")
def train(run_main, corpus, home):
    """`train(name, *flags)`: the directory of a run with checkpoints of steps 3 and 6, and the losses that it told."""
    made = {}

    def run(name, *flags):
        if name not in made:
            steps = ("--max-steps", 6, "--training.save-interval", 3, "--training.sample-tokens", 0, "--device", "cpu")
            data = ("--data.prefix", corpus, "--data.test-fraction", 0.1, "--training.lr", 0.03)
            done = run_main(*data, *steps, "--run-dir", home / name, *flags)
            assert done.returncode == 0, done.stderr
            made[name] = home / name
        return made[name]

    return run


@pytest.fixture(scope="module")
def run_dir(train):
    return train("bf16", "--dtype", "bf16")


@pytest.fixture
def evaluated(capsys, monkeypatch):
    """`evaluated(*flags)`: what --json prints. However long it takes, no line tells how far it is."""
    monkeypatch.setattr("megaselect.cli.evaluate.LINE_SECONDS", float("inf"))

    def run(*flags):
        capsys.readouterr()
        code = main(["evaluate", "--json", *map(str, flags)])
        output, errors = capsys.readouterr()
        assert (code, errors) == (0, "")
        return json.loads(output)

    return run


@pytest.fixture
def refused(capsys):
    """`refused(*flags)`: the one line of the error."""

    def run(*flags):
        capsys.readouterr()
        assert main(["evaluate", *map(str, flags)]) == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith("error: ")
        [line] = errors.removeprefix("error: ").splitlines()
        return line

    return run


KINDS = {
    "bf16": ("--dtype", "bf16"),
    "fp32 selective": ("--recompute", "selective"),
    "fp16 in chunks": ("--dtype", "fp16", "--training.loss-chunk-tokens", 5),
    "fused": ("--attention", "fused", "--training.micro-batch-size", 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_runs_own_loss_to_the_bit(train, evaluated, read_metrics, kind):
    """Validation at both steps that were saved; the last line of the metrics has the whole number."""
    run_dir = train(kind, *KINDS[kind])
    told = {line["step"]: line["valid_loss"] for line in read_metrics(run_dir) if "valid_loss" in line}
    for step in (3, 6):
        found = evaluated("--run", run_dir, "--checkpoint", step, "--samples", EVAL_SAMPLES)
        assert found["loss"] == told[step]
        assert (found["step"], found["samples"], found["tokens"]) == (step, EVAL_SAMPLES, EVAL_SAMPLES * SEQUENCE)
        assert found["dtype"] == {"bf16": "bfloat16", "fp16 in chunks": "float16"}.get(kind, "float32")
    best = evaluated("--run", run_dir, "--checkpoint", "best", "--samples", EVAL_SAMPLES)
    assert best["loss"] == min(told.values())


def test_the_loss_on_the_test_split_is_the_runs_own(run_dir, run_main, evaluated, corpus, home, capsys):
    """A complete run that is started again says its test loss again; the console gives four places of it."""
    found = evaluated("--run", run_dir, "--split", "test")
    assert found["samples"] == found["samples_in_data"] > EVAL_SAMPLES
    assert found["samples"] % MICRO_BATCH or found["samples"] % 4
    again = run_main(
        *("--data.prefix", corpus, "--data.test-fraction", 0.1, "--dtype", "bf16", "--max-steps", 6),
        *("--training.lr", 0.03, "--training.save-interval", 3, "--training.sample-tokens", 0, "--device", "cpu"),
        *("--run-dir", run_dir),
    )
    assert f"test loss      {found['loss']:.4f}\n" in again.stdout, again.stderr


def test_the_numbers_are_those_of_the_weights_on_the_windows(train, evaluated, tokenizer, corpus):
    """Computed here from the tokens of the file, by torch's cross-entropy; bytes by decoding document for document."""
    run_dir = train("fp32 selective", *KINDS["fp32 selective"])
    found = evaluated("--run", run_dir, "--data", corpus, "--micro-batch-size", 7)
    tokens = torch.tensor(IndexedDataset(corpus).tokens.astype("int64"))
    windows = (len(tokens) - 1) // SEQUENCE
    assert (found["samples"], found["samples_in_data"], found["tokens"]) == (windows, windows, windows * SEQUENCE)
    model = load_saved_model(run_dir, None, "cpu", "auto").model
    inputs, targets = tokens[: windows * SEQUENCE].view(-1, SEQUENCE), tokens[1 : windows * SEQUENCE + 1]
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1).double(), targets, reduction="none")
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-12)
    text = "".join(LINES)
    unread = tokenizer.decode(tokens[windows * SEQUENCE + 1 :].tolist()), tokenizer.decode(tokens[:1].tolist())
    assert found["bytes"] == len(text.encode()) - sum(len(each.encode()) for each in unread)
    bits = losses.sum().item() / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / found["bytes"], rel=1e-6)


def test_samples_are_the_first_ones_whatever_the_micro_batch(run_dir, evaluated):
    values = [evaluated("--run", run_dir, "--samples", 5, "--micro-batch-size", size) for size in (1, 2, 8)]
    assert {value["bytes"] for value in values} == {values[0]["bytes"]}
    assert {value["samples"] for value in values} == {5}
    assert [value["loss"] for value in values] == pytest.approx([values[0]["loss"]] * 3, rel=2**-9)  # bf16
    assert evaluated("--run", run_dir, "--samples", 10**9) == evaluated("--run", run_dir)


def test_the_text_form(run_dir, corpus, evaluated, capsys):
    found = evaluated("--run", run_dir, "--split", "train", "--samples", 3, "--dtype", "fp32")
    assert main(["evaluate", "--run", str(run_dir), "--split", "train", "--samples", "3", "--dtype", "fp32"]) == 0
    output = capsys.readouterr().out
    assert output == (
        f"checkpoint     {run_dir}/checkpoints/step-00000006\n"
        f"data           train split of {corpus}\n"
        f"samples        3 of {found['samples_in_data']}: 48 tokens, {found['bytes']} bytes of text\n"
        "computed       cpu, float32, micro-batch 2\n"
        f"loss           {found['loss']:.6f}\n"
        f"perplexity     {found['perplexity']:,.4g}\n"
        f"bits per byte  {found['bits_per_byte']:.6f}\n"
    )


def test_data_without_a_tokenizer_has_a_loss_and_no_bytes(run_main, evaluated, dataset, tmp_path, capsys):
    flags = ("--data.prefix", dataset, "--model.vocab-size", 256, "--device", "cpu", "--max-steps", 3)
    assert run_main(*flags, "--training.sample-tokens", 0, "--run-dir", tmp_path / "run").returncode == 0
    found = evaluated("--run", tmp_path / "run", "--samples", 4)
    assert (found["bytes"], found["bits_per_byte"]) == (None, None)
    assert 4 < found["loss"] < 8
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "without a tokenizer" in output
    assert "bits per byte  -\n" in output


def test_changed_data_is_noted(train, corpus, tokenizer, run_main, capsys, tmp_path):
    copy = write(tmp_path / "copy", tokenizer, LINES)
    done = run_main("--data.prefix", copy, "--device", "cpu", "--max-steps", 3, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    write(copy, tokenizer, LINES[::-1])
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.startswith("note: the run's data has changed: fingerprint ")


def test_what_is_refused(run_dir, refused, tokenizer, train, run_main, corpus, tmp_path):
    run = ("--run", run_dir)
    assert f"{tmp_path} holds no checkpoint: name" in refused("--run", tmp_path)
    assert "it has step-00000003, step-00000006" in refused(*run, "--checkpoint", "step-4")
    assert refused(*run, "--samples", 0) == "--samples 0: must be at least 1"
    assert refused(*run, "--micro-batch-size", -1) == "--micro-batch-size -1: must be at least 1"
    assert "give one of the two" in refused(*run, "--data", corpus, "--split", "test")
    assert "none.idx" in refused(*run, "--data", tmp_path / "none")
    assert "invalid choice: 'all'" in refused(*run, "--split", "all")
    assert "required: --run" in refused()
    if not torch.cuda.is_available():
        assert "torch sees no GPU" in refused(*run, "--device", "cuda")
    short = write(tmp_path / "short", tokenizer, ["a"])
    assert f"the {short} split has" in refused(*run, "--data", short)
    (tmp_path / "foreign.model").write_bytes(train_tokenizer(LINES[:200], VOCABULARY))
    foreign = write(tmp_path / "foreign", Tokenizer(tmp_path / "foreign.model"), LINES)
    assert "another tokenizer" in refused(*run, "--data", foreign)
    plain = IndexedDatasetWriter(tmp_path / "plain", 40_000)
    plain.add_document([39_999] * 100)
    plain.finish()
    assert "plain.bin holds token id 39999, outside the model's vocabulary of 300" in refused(
        *run, "--data", tmp_path / "plain"
    )


def test_a_run_without_a_test_split_or_without_its_data(run_main, refused, tokenizer, tmp_path):
    prefix = write(tmp_path / "own", tokenizer, LINES)
    run_dir = tmp_path / "run"
    done = run_main("--data.prefix", prefix, "--device", "cpu", "--max-steps", 3, "--run-dir", run_dir)
    assert done.returncode == 0, done.stderr
    assert "has no test split; choose valid, or name a dataset by --data" in refused(
        "--run", run_dir, "--split", "test"
    )
    prefix.with_suffix(".idx").unlink()
    line = refused("--run", run_dir)
    assert "own.idx" in line
    assert "--data PREFIX" in line


def test_bytes_of_pieces_are_those_of_the_text(tokenizer):
    lengths = piece_bytes(tokenizer)
    assert lengths.shape == (VOCABULARY,)
    assert lengths[tokenizer.end_of_document_id] == 0
    unknown = len(" \u2047 ".encode())
    assert lengths[0] == unknown
    for text in (*LINES[:20], "", " ", "  a\n\tb  ", "▁ ▁", "\0", "日本語 🙂", "a\u0301 \r\n"):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_bytes_of_pieces_of_another_maker(tmp_path):
    """A space before each text counts, although decoding drops it; what is no piece counts as it is decoded."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=60, model_type="char", minloglevel=2
    )
    (tmp_path / "plain.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer(tmp_path / "plain.model")
    lengths = piece_bytes(tokenizer)
    for text in ("line 7 of a text", "line \u6f22 of"):
        ids = tokenizer.encode(text)
        assert lengths[ids].sum() == len(tokenizer.decode(ids).encode()) + 1
