"""Who gives which sample: shares that hold after every sample, and the same samples however they are asked for."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaselect.data.blend import MAX_PATTERN, BlendedSource, BlendPattern
from megaselect.data.sampler import TokenSource

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def turns(pattern, num_samples):
    """The source of each sample, found sample by sample."""
    found = [None] * num_samples
    for source in range(len(pattern.quotas)):
        for index in pattern.positions(source, 0, pattern.count(source, num_samples)):
            assert found[index] is None
            found[index] = source
    return found


@given(WEIGHTS)
@settings(deadline=None)
def test_after_every_sample_each_source_has_given_its_share_to_within_one(weights):
    pattern = BlendPattern([Fraction(weight) for weight in weights])
    num_samples = 2 * pattern.length + 3
    order = turns(pattern, num_samples)
    assert None not in order
    given = [0] * len(weights)
    for index, source in enumerate(order):
        given[source] += 1
        for number, weight in enumerate(weights):
            share = Fraction(weight, sum(weights)) * (index + 1)
            assert abs(given[number] - share) < 1
            assert given[number] == pattern.count(number, index + 1)


@given(WEIGHTS, st.integers(0, 10**15))
@settings(deadline=None)
def test_a_sample_far_into_the_run_is_found_at_once(weights, num_samples):
    pattern = BlendPattern([Fraction(weight) for weight in weights])
    counts = [pattern.count(source, num_samples) for source in range(len(weights))]
    assert sum(counts) == num_samples
    for source, count in enumerate(counts):
        [position] = pattern.positions(source, count, count + 1)
        assert position >= num_samples
        assert pattern.count(source, position) == count
        assert pattern.count(source, position + 1) == count + 1


def test_shares_without_a_small_denominator_are_rounded_and_none_to_nothing():
    pattern = BlendPattern([Fraction("0.123456789"), Fraction("0.6"), Fraction("1e-9"), Fraction(1, 3)])
    total = Fraction("0.123456789") + Fraction("0.6") + Fraction("1e-9") + Fraction(1, 3)
    assert pattern.length == sum(pattern.quotas) == MAX_PATTERN
    assert pattern.quotas[2] == 1
    for quota, weight in zip(pattern.quotas, ["0.123456789", "0.6", None, "1/3"], strict=True):
        if weight:
            assert abs(quota - MAX_PATTERN * Fraction(weight) / total) <= 1


def test_the_order_never_changes_between_versions():
    """A resumed run continues in the order that the run was started with."""
    assert turns(BlendPattern([Fraction("0.7"), Fraction("0.3")]), 10) == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert turns(BlendPattern([Fraction(w) for w in (5, 3, 1, 1)]), 10) == [0, 1, 0, 1, 0, 2, 0, 1, 0, 3]


@pytest.fixture
def sources(write_tokens):
    """Three datasets whose tokens say whose they are: 100, 20 and 7 windows of 4."""
    sizes = {"a": (0, 401), "b": (1000, 81), "c": (2000, 29)}
    return [
        TokenSource(write_tokens(name, range(first, first + size)), 4, 7 + number)
        for number, (name, (first, size)) in enumerate(sizes.items())
    ]


def test_each_source_gives_its_own_samples_in_its_own_order(sources):
    blend = BlendedSource(sources, [Fraction("0.5"), Fraction("0.3"), Fraction("0.2")])
    batch = blend.batch(0, 300)
    assert torch.equal(batch.sample_index, torch.arange(300))
    counts = blend.counts(300)
    assert counts == dict(zip([source.prefix for source in sources], [150, 90, 60], strict=True))
    for number, (source, count) in enumerate(zip(sources, counts.values(), strict=True)):
        rows = batch.tokens[:, 0] // 1000 == number
        alone = source.batch(0, count)
        assert torch.equal(batch.tokens[rows], alone.tokens)
        assert torch.equal(batch.targets[rows], alone.targets)


def test_batches_do_not_depend_on_how_samples_are_grouped(sources):
    blend = BlendedSource(sources, [Fraction("0.5"), Fraction("0.3"), Fraction("0.2")])
    whole = blend.batch(40, 60)
    for size in (1, 4, 7, 13):
        parts = [blend.batch(first, min(size, 100 - first)) for first in range(40, 100, size)]
        for name in ("tokens", "targets", "sample_index"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_the_windows_of_a_blend_end_where_the_first_source_starts_again(sources):
    blend = BlendedSource(sources, [Fraction("0.5"), Fraction("0.3"), Fraction("0.2")])
    # The 20 windows of b last for 66 samples, the 7 of c for 35 or so: c's eighth is its first again.
    starts = blend.batch(0, blend.num_windows + 1).tokens[:, 0].tolist()
    assert len(set(starts[:-1])) == blend.num_windows
    assert starts[-1] in starts[:-1]
    assert starts[-1] // 1000 == 2
    assert blend.num_tokens == 401 + 81 + 29
