"""A torch that does otherwise what the observers look at: they refuse in one line, and training goes on."""

import inspect
import json
import types

import numpy as np
import pytest
import torch
from tiny_models import build_unchecked, make_batch, make_config
from torch import nn
from torch.utils import checkpoint

import megaselect
from megaselect import ledger
from megaselect.cli.main import main
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.errors import UnsupportedTorchError
from megaselect.ledger import self_check

TINY = (
    *("--model.num-layers", "2", "--model.hidden-size", "32", "--model.num-attention-heads", "4"),
    *("--model.seq-length", "16", "--model.vocab-size", "256", "--device", "cpu"),
    *("--training.micro-batch-size", "2", "--training.global-batch-size", "2"),
)
OLD_NAMES = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
NEW_NAME = "_a_name_of_a_later_release"


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """Flags of a small model and of tokens for it."""
    prefix = tmp_path_factory.mktemp("data") / "tokens"
    writer = IndexedDatasetWriter(prefix, 256)
    writer.add_document(np.random.default_rng(0).integers(0, 256, 2000).tolist())
    writer.finish()
    return [*TINY, "--data.prefix", str(prefix)]


@pytest.fixture
def a_later_torch(monkeypatch):
    """As 2.14 did: what runs a region gets another name, and the old one is left in place, unused."""
    old = next(name for name in OLD_NAMES if hasattr(checkpoint, name))
    monkeypatch.setattr(checkpoint, NEW_NAME, getattr(checkpoint, old), raising=False)
    for function in map(inspect.unwrap, filter(callable, list(vars(checkpoint).values()))):
        if isinstance(function, types.FunctionType) and old in function.__code__.co_names:
            names = tuple(NEW_NAME if name == old else name for name in function.__code__.co_names)
            monkeypatch.setattr(function, "__code__", function.__code__.replace(co_names=names))
    self_check._fault.cache_clear()
    yield
    self_check._fault.cache_clear()


def test_this_torch_is_seen_as_it_is():
    self_check._fault.cache_clear()
    self_check.check_observation()


def test_what_observes_refuses_with_the_version_and_what_was_seen(a_later_torch):
    config = make_config({"mode": "full"})
    model = build_unchecked(config)
    with pytest.raises(UnsupportedTorchError) as refused, ledger.record(model):
        model(*make_batch(config))
    assert f"torch {torch.__version__} shows a non-reentrant region as" in str(refused.value)
    assert "'regions': 0" in str(refused.value)
    assert "training is not affected" in str(refused.value)
    with pytest.raises(UnsupportedTorchError):
        megaselect.verify(nn.Linear(2, 1), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("version_of", lambda tensor: 0, "does not count changes in place"),
        ("storage_address", lambda tensor: tensor.gone, "fails where regions are watched (AttributeError"),
        ("graph_of", lambda tensor: tensor.grad_fn, "does not say what made a tensor"),
        ("argument_names", lambda op: [], "does not name an operator's arguments"),
    ],
)
def test_each_private_name_that_it_needs_is_asked(monkeypatch, name, answer, said):
    monkeypatch.setattr(self_check, name, answer)
    self_check._fault.cache_clear()
    with pytest.raises(UnsupportedTorchError) as refused:
        self_check.check_observation()
    self_check._fault.cache_clear()
    assert said in str(refused.value)


def test_verify_exits_with_2_and_one_line(a_later_torch, tiny_data, capsys):
    assert main(["verify", *tiny_data]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: torch {torch.__version__} shows")
    assert error.count("\n") == 1


def test_training_goes_on_with_the_same_losses(tmp_path, tiny_data, request):
    def losses(name):
        run = tmp_path / name
        flags = ["--recompute", "full", "--max-steps", "2", "--wandb", "disabled", "--run-dir", str(run)]
        assert main(["train", *tiny_data, *flags]) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(row["loss"], row["grad_norm"], row["saved_bytes"]) for row in rows if "loss" in row]

    expected = losses("known")
    request.getfixturevalue("a_later_torch")
    assert losses("later") == [(loss, grad_norm, None) for loss, grad_norm, _ in expected]
    assert len(expected) == 2
    assert all(saved for *_, saved in expected)
