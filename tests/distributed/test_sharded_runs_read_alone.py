"""What commands of one process make of a run on many ranks: the same as of a run of one process."""

import json

import pytest
from whole_runs import assert_same_tensors, read_metrics

from megaselect.cli.main import main
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.data.tokenizer import Tokenizer, train_tokenizer

LINES = [f"line {number} of a text with {number * 7} words" for number in range(200)]
VOCABULARY = 300
SHARDINGS = {
    "parameters": ("--parallel.sharding", "parameters"),
    "gradients": ("--parallel.sharding", "gradients"),
    "whole": ("--parallel.sharding", "none"),
    "replicas": ("--parallel.sharding", "parameters", "--parallel.replicas", "2"),
}
SHOWN = {"parameters": "4 parameters", "gradients": "4 gradients", "whole": "4 none", "replicas": "2x2 parameters"}


@pytest.fixture(scope="module")
def text_flags(tmp_path_factory):
    """A run over text, with its tokenizer, in bf16."""
    prefix = tmp_path_factory.mktemp("corpus") / "text"
    prefix.with_suffix(".model").write_bytes(train_tokenizer(LINES, VOCABULARY))
    tokenizer = Tokenizer(prefix.with_suffix(".model"))
    writer = IndexedDatasetWriter(prefix, VOCABULARY)
    for line in LINES:
        writer.add_document([*tokenizer.encode(line), tokenizer.end_of_document_id])
    writer.finish()
    return ("--data.prefix", prefix, "--model.vocab-size", VOCABULARY, "--dtype", "bf16", "--training.sample-tokens", 0)


@pytest.fixture(scope="module")
def alone(small_runs, text_flags, tmp_path_factory):
    """The run directory of one process, after 4 steps."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    ended = small_runs(1, run_dir, *text_flags, "--max-steps", 4)
    assert ended.codes == [0], ended.err
    return run_dir


@pytest.fixture(scope="module", params=SHARDINGS)
def sharded(request, small_runs, text_flags, tmp_path_factory):
    """How, and the run directory of four ranks, after 2 steps."""
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    ended = small_runs(4, run_dir, *text_flags, "--max-steps", 2, *SHARDINGS[request.param])
    assert ended.codes == [0] * 4, ended.err
    return request.param, run_dir


@pytest.fixture
def said(capsys):
    """`said(*words)`: what the command prints, once it has ended well."""

    def run(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


def test_sample_and_evaluate(sharded, alone, said):
    _, run_dir = sharded
    sample = ("sample", "--prompt", "line 7", "--tokens", 12, "--device", "cpu")
    assert said(*sample, "--run", run_dir) == said(*sample, "--run", alone / "checkpoints" / "step-00000002")
    losses = [
        json.loads(said("evaluate", "--run", place, "--split", "valid", "--device", "cpu", "--json"))["loss"]
        for place in (run_dir, alone / "checkpoints" / "step-00000002")
    ]
    assert losses[0] == losses[1]


def test_runs_shows_the_ranks(sharded, alone, said):
    sharding, run_dir = sharded
    table = said("runs", run_dir, alone)
    assert f" {SHOWN[sharding]} " in table
    assert max(map(len, table.splitlines())) <= 80
    shown = {run["path"]: run["layout"]["ranks"] for run in json.loads(said("runs", run_dir, alone, "--json"))}
    assert shown == {str(run_dir): 4, str(alone): 1}


def test_consolidated_it_is_the_checkpoint_of_one_process(sharded, alone, said, small_runs, text_flags, tmp_path):
    """To the byte; and a run goes on from it."""
    _, run_dir = sharded
    target = tmp_path / "target"
    assert said("checkpoint", "verify", run_dir).startswith("step-00000002  whole: 4 ranks, ")
    said("checkpoint", "consolidate", run_dir, "--out", target)
    ours, theirs = (place / "checkpoints" / "step-00000002" for place in (target, alone))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert_same_tensors(run_dir / "checkpoints" / "step-00000002", theirs)
    ended = small_runs(2, tmp_path / "next", *text_flags, "--max-steps", 4, "--resume", target)
    assert ended.codes == [0, 0], ended.err
    assert_same_tensors(*(place / "checkpoints" / "step-00000004" for place in (tmp_path / "next", alone)))
    assert read_metrics(tmp_path / "next") == read_metrics(alone)[2:]
    ended = small_runs(1, target, *text_flags, "--max-steps", 4)
    assert ended.codes == [0], ended.err
    assert "continuing from step 2" in ended.out[0]
    assert_same_tensors(*(place / "checkpoints" / "step-00000004" for place in (target, alone)))
