"""The dynamic programme against all sequences of choices, for small cases with any bytes and costs."""

import itertools
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from megaselect.planning.planner import LayerChoice, Limits, cheapest, fits, plan_from
from megaselect.prediction.chunks import BackwardBytes
from megaselect.recomputation.plan import Chunk, RecomputePlan

BYTES = st.integers(0, 12)
exhaustively = settings(max_examples=200, deadline=None, derandomize=True)


def choice(kept, forward, backward, cost, count=1, modules=(), checkpointed=False):
    """backward: one number where it is the same wherever the layers stand."""
    places = backward if isinstance(backward, tuple) else 4 * (backward,)
    return LayerChoice(frozenset(modules), checkpointed, count, kept, forward, BackwardBytes(*places), cost)


@st.composite
def choices(draw):
    """One to five; forward and backward hold what is kept, and a chunk's choice is as good as any other."""
    made = []
    for number in range(draw(st.integers(1, 5))):
        kept = draw(BYTES)
        backward = tuple(kept + draw(BYTES) for _ in range(4)) if draw(st.booleans()) else kept + draw(BYTES)
        sizes = (kept, kept + draw(BYTES), backward, draw(st.integers(0, 9)))
        made.append(choice(*sizes, count=draw(st.sampled_from([1, 1, 2, 3])), modules={str(number)}))
    return made


@st.composite
def budgets(draw):
    most = st.integers(-2, 60)
    return Limits(draw(most), draw(most), draw(most), draw(st.integers(0, 4)))


def stays_within(order, layers, limits):
    """As the docstrings of LayerChoice and Limits have it: every forward, the loss, every backward."""
    ends = list(itertools.accumulate((taken.count for taken in order), initial=0))
    kept = list(itertools.accumulate((taken.kept for taken in order), initial=0))
    moments = [(kept[-1], limits.after_layers)]
    for number, taken in enumerate(order):
        moments.append((kept[number] + taken.forward, limits.forward))
        gradients = (layers - ends[number + 1]) * limits.gradients_per_layer
        backward = taken.backward.at(first=number == 0, last=ends[number + 1] == layers)
        moments.append((kept[number] + backward + gradients, limits.backward))
    return all(held <= limit for held, limit in moments)


def every_order(choices, layers):
    if not layers:
        yield ()
        return
    for taken in choices:
        if taken.count <= layers:
            yield from ((taken, *rest) for rest in every_order(choices, layers - taken.count))


def cost_and_bytes(order):
    return sum(taken.cost for taken in order), sum(taken.kept for taken in order)


@exhaustively
@given(choices(), st.integers(1, 5), budgets())
@example([choice(2, 2, 2, 0, count=2), choice(1, 1, 1, 0, count=2)], 3, Limits(9, 9, 9, 0))  # no way to three layers
@example([choice(3, 3, 9, 0), choice(0, 0, 3, 1)], 2, Limits(9, 9, 9, 0))  # only with the larger backward first
def test_no_order_of_choices_that_fits_costs_less(choices, layers, limits):
    fitting = [order for order in every_order(choices, layers) if stays_within(order, layers, limits)]
    found = cheapest(choices, layers, limits)
    if not fitting:
        assert found is None
        return
    assert sum(taken.count for taken in found) == layers
    assert stays_within(found, layers, limits)
    assert cost_and_bytes(found) == min(map(cost_and_bytes, fitting))
    assert cheapest(list(choices), layers, limits) == found


@exhaustively
@given(choices(), st.integers(1, 5), budgets(), st.sampled_from(["forward", "after_layers", "backward"]))
def test_a_larger_budget_never_costs_more(choices, layers, limits, name):
    found = cheapest(choices, layers, limits)
    more = cheapest(choices, layers, replace(limits, **{name: getattr(limits, name) + 1}))
    assert found is None or cost_and_bytes(more) <= cost_and_bytes(found)


@exhaustively
@given(choices(), st.integers(1, 4), budgets())
def test_fits_is_what_the_limits_say(choices, layers, limits):
    for order in every_order(choices, layers):
        assert fits(order, layers, limits) == stays_within(order, layers, limits)


def test_bytes_beyond_32_bit_are_exact():
    tera = 10**13
    small, large = choice(tera, tera, tera, 10**15), choice(tera + 1, tera + 1, tera + 1, 0)
    limits = Limits(10 * tera, 3 * tera + 1, 10 * tera, 0)
    assert cost_and_bytes(cheapest([small, large], 3, limits)) == (2 * 10**15, 3 * tera + 1)


def test_equal_choices_stand_side_by_side_where_that_fits():
    """The way back through the states goes small, large, large, small."""
    small, large = choice(0, 3, 6, 3), choice(3, 5, 10, 1)
    assert cheapest([small, large], 4, Limits(11, 7, 15, 2)) == [small, small, large, large]


def test_a_plan_has_the_choices_in_their_order():
    plain, chunk = choice(5, 5, 5, 0, modules={"gelu"}), choice(1, 1, 1, 1, count=2, checkpointed=True)
    nothing = frozenset()
    assert plan_from([chunk, plain, chunk], recompute_embedding_mask=True) == RecomputePlan(
        "auto",
        (nothing, nothing, frozenset({"gelu"}), nothing, nothing),
        (Chunk(0, 2, True), Chunk(2, 1, False), Chunk(3, 2, True)),
        True,
    )
