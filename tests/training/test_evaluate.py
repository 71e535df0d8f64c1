"""Loss on a split: which windows are read, and that nothing but the weights and the windows changes the value."""

import pytest
import torch

from megaselect.build import build_model
from megaselect.data.sampler import TokenSource
from megaselect.errors import DataError
from megaselect.models.gpt.compiled import is_compiled
from megaselect.training.evaluate import evaluate

WINDOWS = 21
# A logit is a sum of 32 products, which a matrix product of another shape may round in another order: by at most 32
# units of the last place in all. (On this project's machines the bits are the same.)
ROUNDINGS = 32 * 2**-24
MODES = {"selective": {"recompute.mode": "selective"}, "full": {"recompute.mode": "full"}}


class Reads:
    """A source that notes the windows that are read from it, and their tokens."""

    def __init__(self, source):
        self.source, self.num_windows = source, source.num_windows
        self.sizes, self.indices, self.tokens = [], [], []

    def batch(self, first, size):
        batch = self.source.batch(first, size)
        self.sizes.append(size)
        self.indices += batch.sample_index.tolist()
        self.tokens += batch.tokens.tolist()
        return batch


@pytest.fixture
def source(write_dataset, tmp_path):
    """21 windows of 16 tokens."""
    prefix = write_dataset(tmp_path / "tokens", WINDOWS * 16 + 1)
    return TokenSource(prefix, 16, 1234, shuffle=False, vocab_size=256)


@pytest.fixture
def model(make_config):
    return build_model(make_config())


@pytest.mark.parametrize(("samples", "windows"), [(21, 21), (100, 21), (13, 13), (1, 1)])
def test_the_micro_batch_changes_neither_the_windows_nor_the_value(model, source, samples, windows):
    values = []
    for size in (8, 4, 2, 1):
        reads = Reads(source)
        values.append(evaluate(model, reads, samples, size))
        assert reads.indices == list(range(windows))
        assert reads.tokens == [source.batch(number, 1).tokens[0].tolist() for number in range(windows)]
        assert set(reads.sizes[:-1]) <= {size}
        assert reads.sizes[-1] == windows - size * (len(reads.sizes) - 1)
    assert max(values) - min(values) <= max(values) * ROUNDINGS


def test_it_is_the_mean_over_all_tokens_without_dropout(model, source):
    value = evaluate(model, source, WINDOWS, 4)
    assert value == evaluate(model, source, WINDOWS, 4)
    model.eval()
    batch = source.batch(0, WINDOWS)
    with torch.no_grad():
        logits = model(batch.tokens).double()
        trained = model(batch.tokens, batch.targets).item()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item()
    assert value == pytest.approx(expected, rel=ROUNDINGS)
    assert value == pytest.approx(trained, rel=ROUNDINGS)


def test_a_window_more_in_the_last_micro_batch_counts_as_one_window(model, source):
    """Where the last one counted as a whole micro-batch, the windows in it would count four times."""
    alone = [evaluate(model, Reads(_Part(source, number)), 1, 1) for number in range(5)]
    assert evaluate(model, source, 5, 4) == pytest.approx(sum(alone) / 5, rel=ROUNDINGS)
    assert evaluate(model, source, 5, 4) != pytest.approx((sum(alone[:4]) / 4 + alone[4]) / 2, rel=1e-4)


class _Part:
    """One window of a source."""

    def __init__(self, source, number):
        self.source, self.number, self.num_windows = source, number, 1

    def batch(self, first, size):
        return self.source.batch(self.number + first, size)


def test_losses_of_tokens_are_those_whose_mean_is_the_loss(make_config, source):
    batch = source.batch(0, 3)
    for chunk in (None, 5, 1000):
        model = build_model(make_config(training__loss_chunk_tokens=chunk)).eval()
        losses = model(batch.tokens, batch.targets, reduction="none")
        assert losses.shape == batch.targets.shape
        assert not losses.requires_grad
        assert losses.t().reshape(-1).mean() == model(batch.tokens, batch.targets)  # in the order of the op
        one = model(batch.tokens[1:2, :7], batch.targets[1:2, :7], reduction="none")
        torch.testing.assert_close(one[0], losses[1, :7], rtol=ROUNDINGS, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_same_in_every_mode(make_config, source, mode):
    none = evaluate(build_model(make_config()), source, WINDOWS, 4)
    settings = {name.replace(".", "__"): value for name, value in MODES[mode].items()}
    assert evaluate(build_model(make_config(**settings)), source, WINDOWS, 4) == none


def test_a_compiled_model_is_evaluated_by_the_same_bits_and_compiles_nothing_for_it(make_config, source):
    """The last micro-batch has a shape of its own; the graph of the steps stays the one that there is."""
    plain, compiled = build_model(make_config()), build_model(make_config(training__compile=True))
    assert all(map(is_compiled, compiled.layers))
    batch = source.batch(0, 2)
    compiled(batch.tokens, batch.targets, batch.sample_index).backward()
    before = dict(torch._dynamo.utils.counters["stats"])
    assert before
    assert evaluate(compiled, source, WINDOWS, 2) == evaluate(plain, source, WINDOWS, 2)
    compiled(batch.tokens, batch.targets, batch.sample_index).backward()
    assert dict(torch._dynamo.utils.counters["stats"]) == before


@pytest.mark.parametrize("last", range(4))
def test_it_ends_where_it_may_not_go_on(model, source, last):
    """It asks before every micro-batch, with the windows that are done; a complete one is complete."""
    asked, reads = [], Reads(source)

    def goes_on(done):
        asked.append(done)
        return len(asked) <= last

    value = evaluate(model, reads, WINDOWS, 7, goes_on)
    assert asked == [0, 7, 14][: last + 1]
    assert reads.sizes == [7, 7, 7][:last]
    assert value == (evaluate(model, source, WINDOWS, 7) if last == 3 else None)
    assert model.training


def test_the_model_trains_on_also_after_an_error(model, source, write_dataset, tmp_path):
    evaluate(model, source, 2, 2)
    assert all(module.training for module in model.modules())
    large = TokenSource(write_dataset(tmp_path / "large", 400, vocabulary=60_000), 16, 1234, vocab_size=256)
    with pytest.raises(DataError):
        evaluate(model, large, 2, 2)
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())
