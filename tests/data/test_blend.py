"""Who gives which sample: shares that hold after every sample, and the same samples however they are asked for."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaselect.data import blend_pattern
from megaselect.data.blend import BlendedSource
from megaselect.data.blend_pattern import PART_SLOTS, BlendPattern
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


FAR = [
    ["0.99999", "0.00001"],
    ["183247119", "92714", "5512345678"],
    ["1e-9", "3e-9", "1", "1", "0.31", "0.123456789012345678"],
    ["1e-300", "1", "0.5"],
    [str(17**number % 1_000_003 * 10_007 + number) for number in range(1, 41)],
]


@pytest.mark.parametrize("weights", FAR, ids=lambda weights: weights[0])
def test_shares_hold_to_within_one_after_any_number_of_samples_for_any_weights(weights):
    weights = [Fraction(weight) for weight in weights]
    shares = [weight / sum(weights) for weight in weights]
    pattern = BlendPattern(weights)
    assert [Fraction(quota, pattern.length) for quota in pattern.quotas] == shares
    for num_samples in (1, 99_999, 100_001, 5 * PART_SLOTS, 10**7, 10**7 + 1, 10**12 + 12_345, 10**15):
        counts = [pattern.count(source, num_samples) for source in range(len(weights))]
        assert sum(counts) == num_samples
        assert all(abs(count - share * num_samples) < 1 for count, share in zip(counts, shares, strict=True))


def test_a_small_weight_gets_no_more_than_its_share():
    assert BlendPattern([Fraction("0.99999"), Fraction("0.00001")]).count(1, 10**7) == 100


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8), st.sampled_from([1, 2, 7, 64]), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_a_schedule_found_in_parts_is_the_one_found_whole(weights, part_slots, span):
    weights = [Fraction(weight) for weight in weights]
    whole, num_samples = BlendPattern(weights), 500
    for vectorised in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blend_pattern, "MAX_PATTERN", 0)
            patch.setattr(blend_pattern, "PART_SLOTS", part_slots)
            patch.setattr(blend_pattern, "_FIRST_SPAN", span)
            if not vectorised:
                patch.setattr(blend_pattern, "_LARGEST_VECTORISED", 0)
            parts = BlendPattern(weights)
            for first in (0, 10**6):
                for source in range(len(weights)):
                    start, stop = (whole.count(source, index) for index in (first, first + num_samples))
                    assert (parts.count(source, first), parts.count(source, first + num_samples)) == (start, stop)
                    assert parts.positions(source, start, stop) == whole.positions(source, start, stop)
                    assert whole.first_position([stop] * len(weights)) == parts.first_position([stop] * len(weights))


def test_the_order_never_changes_between_versions():
    """A resumed run continues in the order that the run was started with."""
    assert turns(BlendPattern([Fraction("0.7"), Fraction("0.3")]), 10) == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert turns(BlendPattern([Fraction(w) for w in (5, 3, 1, 1)]), 10) == [0, 1, 0, 1, 0, 2, 0, 1, 0, 3]


def test_a_blend_of_any_weights_gives_the_same_samples_however_they_are_grouped(sources):
    blend = BlendedSource(sources, [Fraction(183247119), Fraction(92714), Fraction(5512345678)])
    first = 10**7 - 50
    whole = blend.batch(first, 100)
    parts = [blend.batch(index, 20) for index in range(first, first + 100, 20)]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    counts = [
        count - before for count, before in zip(*(blend.counts(n).values() for n in (first + 100, first)), strict=True)
    ]
    assert [int((whole.tokens[:, 0] // 1000 == number).sum()) for number in range(3)] == counts


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
