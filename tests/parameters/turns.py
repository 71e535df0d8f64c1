"""Products of parameters of which `make test` runs each pair of values, and `make soak` the rest."""

import itertools
from collections.abc import Mapping

import pytest


def in_turns(turns, dimensions):
    """`pytest.mark.parametrize` over a product, with the mark `soak` on all but one in `turns` of its combinations.

    dimensions: {argument, or tuple of arguments: its values, or {id: value}}. Without the mark are those whose values'
    places in their dimensions sum to a multiple of `turns`, a Latin square: whichever two values are chosen, a third
    dimension brings them together in one of these. A product in which two values would not meet is an AssertionError.
    """
    names = [name for key in dimensions for name in ((key,) if isinstance(key, str) else key)]
    columns = [
        [(str(label), *_as_tuple(key, value)) for label, value in _labelled(values)]
        for key, values in dimensions.items()
    ]
    places = list(itertools.product(*(range(len(column)) for column in columns)))
    chosen = {place for place in places if sum(place) % turns == 0}
    assert _pairs(chosen) == _pairs(places), f"one in {turns} has not every pair of values"
    cases = []
    for place in places:
        cells = [column[number] for column, number in zip(columns, place, strict=True)]
        marks = () if place in chosen else pytest.mark.soak
        cases.append(
            pytest.param(
                *(value for _, *values in cells for value in values),
                id="-".join(cell[0] for cell in cells),
                marks=marks,
            )
        )
    return pytest.mark.parametrize(names, cases)


def _labelled(values):
    if isinstance(values, Mapping):
        return values.items()
    return [("-".join(map(str, value)) if isinstance(value, tuple) else value, value) for value in values]


def _as_tuple(key, value):
    return (value,) if isinstance(key, str) else value


def _pairs(places):
    """Each two dimensions, and two values of them that meet in one of the combinations."""
    return {pair for place in places for pair in itertools.combinations(enumerate(place), 2)}
