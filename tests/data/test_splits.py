"""Where each split's tokens come from, and what is refused."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from megaselect.data.fingerprint import fingerprint
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.data.sampler import TokenSource
from megaselect.data.splits import SplitRules, open_splits
from megaselect.errors import DataError


@pytest.fixture
def counting(write_tokens):
    """1,003 tokens that say where they stand."""
    return write_tokens("counting", range(1003))


def split(prefix, seq_length=8, **rules):
    return open_splits([(Fraction(1), prefix)], SplitRules(seq_length, 1234, **rules))


def first_tokens(source, num_samples):
    return source.batch(0, num_samples).tokens[:, 0].tolist()


def test_validation_is_split_off_the_end(counting):
    splits = split(counting, valid_fraction=0.25)
    assert (splits.train.num_tokens, splits.valid.num_tokens, splits.test) == (752, 251, None)
    assert sorted(first_tokens(splits.train, splits.train.num_windows)) == list(range(0, 744, 8))
    assert first_tokens(splits.valid, 31) == list(range(752, 1000, 8))


def test_test_is_split_off_after_validation(counting):
    splits = split(counting, valid_fraction=0.25, test_fraction=0.5)
    tokens = [each.num_tokens for each in (splits.train, splits.valid, splits.test)]
    assert tokens == [250, 251, 502]
    assert max(first_tokens(splits.train, 31)) == 240
    assert first_tokens(splits.valid, 31) == list(range(250, 498, 8))
    assert first_tokens(splits.test, 62) == list(range(501, 996, 8))


def test_datasets_beside_the_training_dataset_are_found(counting, write_tokens):
    write_tokens("counting_valid", [7] * 20)
    write_tokens("counting_test", [9] * 20)
    splits = split(counting, valid_fraction=0.25, test_fraction=0.25)
    assert splits.train.num_tokens == 1003
    assert splits.valid.batch(0, 1).tokens.tolist() == [[7] * 8]
    assert splits.test.batch(0, 1).tokens.tolist() == [[9] * 8]


def test_datasets_that_are_named_win(counting, write_tokens):
    for name, token in (("counting_valid", 7), ("counting_test", 7), ("named_valid", 5), ("named_test", 6)):
        prefix = write_tokens(name, [token] * 20)
    named = str(Path(prefix).parent / "named")
    splits = split(counting, valid_prefix=f"{named}_valid", test_prefix=f"{named}_test", valid_fraction=0.25)
    assert splits.train.num_tokens == 1003
    assert splits.valid.batch(0, 1).tokens.tolist() == [[5] * 8]
    assert splits.test.batch(0, 1).tokens.tolist() == [[6] * 8]


def test_each_dataset_of_a_blend_has_splits_of_its_own(write_tokens):
    a, b = write_tokens("a", range(801)), write_tokens("b", range(1000, 1801))
    write_tokens("b_valid", range(2000, 2101))
    write_tokens("b_test", range(3000, 3101))
    splits = open_splits([(Fraction(3), a), (Fraction(1), b)], SplitRules(8, 1234, valid_fraction=0.25))
    assert splits.train.counts(100) == {a: 75, b: 25}
    # a: the last quarter of its tokens; b: the dataset beside it
    assert splits.valid.counts(4) == {a: 3, f"{b}_valid": 1}
    starts = first_tokens(splits.valid, 8)
    assert [start for start in starts if start < 1000] == [600 + 8 * i for i in range(6)]
    assert [start for start in starts if start >= 1000] == [2000, 2008]
    # only b has a test split
    assert splits.test.counts(4) == {}
    assert first_tokens(splits.test, 2) == [3000, 3008]


def test_datasets_of_one_size_come_in_different_orders(write_tokens):
    a, b = write_tokens("a", range(801)), write_tokens("b", range(1000, 1801))
    train = open_splits([(Fraction(1), a), (Fraction(1), b)], SplitRules(8, 1234, valid_fraction=0.25)).train
    starts = torch.tensor(first_tokens(train, 100))
    assert not torch.equal(starts[starts < 1000], starts[starts >= 1000] - 1000)


def test_error_names_the_split_that_is_too_short(counting):
    with pytest.raises(
        DataError, match=r"^the validation split has 51 tokens, but one window of seq_length 60 takes 61;"
    ):
        split(counting, seq_length=60, valid_fraction=0.05)
    with pytest.raises(DataError, match=r"^the training split has 952 tokens, .* seq_length 1000 takes 1001;"):
        split(counting, seq_length=1000, valid_fraction=0.05)
    with pytest.raises(DataError, match=r"^the test split has 6 tokens, "):
        split(counting, valid_fraction=0.05, test_fraction=0.005)


def test_nothing_to_evaluate_on(counting):
    with pytest.raises(DataError) as caught:
        split(counting)
    assert str(caught.value) == (
        f"there is nothing to evaluate on: data.valid_fraction is 0, and there is no validation dataset beside "
        f"{counting}; set data.valid_prefix, or a fraction such as 0.05"
    )


def test_the_fingerprint_is_of_what_is_trained_on_and_of_nothing_else(tmp_path, write_tokens):
    def of(prefix, **rules):
        return fingerprint(split(prefix, **({"valid_fraction": 0.25} | rules)).train)

    tokens = list(range(40_000))
    original = of(write_tokens("one", tokens))
    assert len(original) == 16
    (tmp_path / "moved").mkdir()
    for suffix in (".bin", ".idx"):
        (tmp_path / "moved" / f"two{suffix}").write_bytes((tmp_path / f"one{suffix}").read_bytes())
    others = {
        "one token at the start": of(write_tokens("start", [1, *tokens[1:]])),
        "one token at the end": of(write_tokens("end", [*tokens[:-1], 1])),
        "one token more": of(write_tokens("more", [*tokens, 1])),
        "another split": of(str(tmp_path / "one"), valid_fraction=0.5),
    }
    with IndexedDatasetWriter(tmp_path / "documents", 50_000) as writer:
        writer.add_document(tokens[:7])
        writer.add_document(tokens[7:])
    others["other documents"] = of(str(tmp_path / "documents"))
    assert of(str(tmp_path / "moved" / "two")) == original
    assert len({original, *others.values()}) == 1 + len(others)


def test_the_fingerprint_of_a_blend_knows_weights_and_order(write_tokens):
    a, b = write_tokens("a", range(801)), write_tokens("b", range(1000, 1801))

    def of(*datasets):
        return fingerprint(open_splits(datasets, SplitRules(8, 1234, valid_fraction=0.25)).train)

    assert of((Fraction(1), a), (Fraction(2), b)) == of((Fraction("0.5"), a), (Fraction(1), b))
    blends = [((Fraction(1), a), (Fraction(2), b)), ((Fraction(2), a), (Fraction(1), b))]
    assert len({of(*blend) for blend in [*blends, tuple(reversed(blends[0]))]} | {of((Fraction(1), a))}) == 4


def test_what_a_fingerprint_reads_is_bounded(write_tokens):
    """64 KiB of each end: a token in between is not seen, which the documentation says."""
    tokens = [1] * 200_000
    source = TokenSource(write_tokens("long", tokens), 8, 0)
    before = fingerprint(source)
    tokens[100_000] = 2
    write_tokens("long", tokens)
    assert fingerprint(source) == before
    tokens[200_000 - 32_768] = 2
    write_tokens("long", tokens)
    assert fingerprint(source) != before
