from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaselect.data.permutation import permute


def permutation(size, *key):
    return permute(np.arange(size), size, key).tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 64, 65, 97, 255, 256, 257, 1009, 4096, 4099])
def test_bijection(size):
    assert sorted(permutation(size, 1234, 0)) == list(range(size))


@given(st.integers(1, 300), st.integers(-(2**70), 2**70), st.integers(0, 2**64))
def test_bijection_for_any_key(size, seed, epoch):
    assert sorted(permutation(size, seed, epoch)) == list(range(size))


@given(st.integers(2**33, 2**62), st.data())
def test_corpora_of_any_size(size, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=20, unique=True))
    images = permute(np.array(indices), size, (1234, 0)).tolist()
    assert len(set(images)) == len(indices)
    assert all(0 <= image < size for image in images)


def test_every_part_of_the_key_matters():
    permutations = [permutation(1000, *key) for key in [(1, 0), (2, 0), (1, 1), (0, 1), (-1, 0), (2**63, 0)]]
    assert len({tuple(each) for each in permutations}) == len(permutations)


def test_all_orders_of_three_come_up_equally_often():
    counts = {}
    for seed in range(6000):
        order = tuple(permutation(3, seed, 0))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    # 1,000 expected, standard deviation 29: these bounds are 5 of them wide, and the seeds are fixed.
    assert all(855 < count < 1145 for count in counts.values())


def test_neighbours_are_scattered():
    order = permutation(10_000, 1234, 0)
    mean_step = sum(abs(a - b) for a, b in pairwise(order)) / 9999
    assert 3200 < mean_step < 3467  # a third of the size for a random order


@given(st.integers(1, 10_000), st.data())
def test_an_image_does_not_depend_on_what_else_is_asked_for(size, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    assert permute(np.array(indices), size, (1, 2)).tolist() == [permutation(size, 1, 2)[index] for index in indices]


def test_the_order_never_changes_between_versions():
    """A resumed run continues in the order that the run was started with."""
    assert permutation(10, 1234, 0) == [4, 1, 2, 8, 3, 6, 9, 7, 5, 0]
    assert permutation(10, 1234, 1) == [5, 4, 3, 8, 9, 7, 2, 1, 6, 0]
    images = {
        (10**12, (1234, 7)): ([123_456_789], [910_047_295_035]),
        (1000, (7, 3)): ([0, 1, 2, 999], [423, 522, 811, 484]),
        (4097, (-1, 2**40)): ([0, 4096], [847, 92]),
        (2**62 - 1, (2**63, 5)): (
            [0, 2**61, 2**62 - 2],
            [2503413982508055675, 3875136990757559797, 1879091579258734638],
        ),
    }
    for (size, key), (indices, expected) in images.items():
        assert permute(np.array(indices), size, key).tolist() == expected
