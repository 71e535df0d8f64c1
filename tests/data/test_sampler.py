import os
import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from megaselect.data.sampler import TokenSource, WindowSampler
from megaselect.errors import DataError


@pytest.fixture
def counting(write_tokens):
    """1,003 tokens that say where they stand: 125 windows of 8, and two tokens that fill none."""
    return write_tokens("counting", range(1003))


@given(st.integers(2, 500), st.integers(1, 40), st.integers(0, 2**63))
def test_each_epoch_visits_every_window_once(num_tokens, seq_length, seed):
    assume(num_tokens > seq_length)
    sampler = WindowSampler(num_tokens, seq_length, seed)
    n = sampler.num_windows
    for epoch in range(3):
        starts = sorted(sampler.window_starts(epoch * n, n).tolist())
        assert starts == [seq_length * i for i in range(n)]
    assert starts[-1] + seq_length + 1 <= num_tokens < starts[-1] + 2 * seq_length + 1


def test_window_start_depends_on_nothing_but_the_sample_index():
    """Blocks of 4,096 places and epochs of 10,000 windows are crossed."""
    sampler = WindowSampler(1_000_001, 100, 1234)
    in_order = WindowSampler(1_000_001, 100, 1234).window_starts(0, 25_000).tolist()
    draw = random.Random(0)
    for first in [4095, 9999, 0, *(draw.randrange(24_000) for _ in range(50))]:
        count = draw.randrange(1000)
        assert sampler.window_starts(first, count).tolist() == in_order[first : first + count]
    assert sorted(in_order[:10_000]) == list(range(0, 1_000_000, 100))


def test_order_differs_by_epoch_and_seed():
    starts = WindowSampler(1001, 1, 1).window_starts(0, 2000).tolist()
    other_seed = WindowSampler(1001, 1, 2).window_starts(0, 1000).tolist()
    assert starts[:1000] != starts[1000:]
    assert starts[:1000] != other_seed


def test_the_order_never_changes_between_versions():
    """A resumed run continues in the order that the run was started with."""
    assert WindowSampler(101, 10, 1234).window_starts(8, 5).tolist() == [50, 0, 50, 40, 30]


def test_without_shuffle_windows_come_in_file_order_and_start_again():
    sampler = WindowSampler(31, 10, 1234, shuffle=False)
    assert sampler.window_starts(0, 7).tolist() == [0, 10, 20, 0, 10, 20, 0]


def test_split_with_exactly_one_window():
    assert WindowSampler(11, 10, 1234).num_windows == 1


def test_split_shorter_than_a_window_is_refused():
    with pytest.raises(DataError) as caught:
        WindowSampler(10, 10, 1234, split="validation")
    assert str(caught.value) == (
        "the validation split has 10 tokens, but one window of seq_length 10 takes 11; "
        "use a shorter seq_length or more text"
    )


def test_batch(counting):
    batch = TokenSource(counting, 8, 1234).batch(3, 2)
    sampler = WindowSampler(1003, 8, 1234)
    for row, index in enumerate([3, 4]):
        start = int(sampler.window_starts(index, 1)[0])
        assert torch.equal(batch.tokens[row], torch.arange(start, start + 8))
        assert torch.equal(batch.targets[row], torch.arange(start + 1, start + 9))
    assert torch.equal(batch.sample_index, torch.tensor([3, 4]))
    for tensor in (batch.tokens, batch.targets, batch.sample_index):
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()


def test_tokens_and_targets_of_a_single_sample_share_no_memory(counting):
    batch = TokenSource(counting, 8, 1234).batch(0, 1)
    assert batch.tokens.untyped_storage().nbytes() == batch.targets.untyped_storage().nbytes() == 8 * 8


def test_windows_share_one_token_and_no_target_comes_twice(counting):
    batch = TokenSource(counting, 8, 1234, shuffle=False).batch(0, 125)
    assert torch.equal(batch.targets.flatten(), torch.arange(1, 1001))
    assert torch.equal(batch.tokens[1:, 0], batch.targets[:-1, -1])


def test_batches_do_not_depend_on_how_samples_are_grouped(counting):
    source = TokenSource(counting, 8, 1234)
    whole = source.batch(120, 12)  # across the end of the first epoch
    parts = [source.batch(127, 5), source.batch(120, 7)]
    for name in ("tokens", "targets", "sample_index"):
        joined = torch.cat([getattr(parts[1], name), getattr(parts[0], name)])
        assert torch.equal(getattr(whole, name), joined)


def test_windows_cross_scattered_sequences(write_index):
    prefix = write_index(lengths=(2, 3, 1), offsets=(4, 0, 3), bounds=(0, 3))
    batch = TokenSource(prefix, 5, 1234).batch(0, 1)
    assert batch.tokens.tolist() == [[5, 6, 1, 2, 3]]
    assert batch.targets.tolist() == [[6, 1, 2, 3, 4]]


def test_tokens_outside_the_models_vocabulary_are_refused(write_tokens, write_index):
    prefix = write_tokens("text", [1, 2, 99])
    assert TokenSource(prefix, 2, 0, vocab_size=100).batch(0, 1).targets.tolist() == [[2, 99]]
    with pytest.raises(DataError) as caught:
        TokenSource(prefix, 2, 0, vocab_size=99).batch(0, 1)
    assert str(caught.value) == (
        f"{prefix}.bin holds token id 99, outside the model's vocabulary of 99; "
        "set model.vocab_size to that of the tokenizer it was written with"
    )
    negative = write_index(np.array([1, -2, 3], dtype="i1").tobytes(), (3,), (0,), (0, 1), code=2)
    with pytest.raises(DataError, match="holds token id -2, outside"):
        TokenSource(negative, 2, 0, vocab_size=99).batch(0, 1)


def test_a_file_cut_short_under_a_run_is_named(write_tokens):
    prefix = write_tokens("a", range(101))
    source = TokenSource(prefix, 10, 7, shuffle=False)
    expected = source.batch(0, 4).tokens
    os.truncate(f"{prefix}.bin", 100)
    assert torch.equal(source.batch(0, 4).tokens, expected)
    with pytest.raises(
        DataError, match=r"a\.bin was cut short after it was opened: it has 100 bytes, and 22 from byte"
    ):
        source.batch(4, 4)
