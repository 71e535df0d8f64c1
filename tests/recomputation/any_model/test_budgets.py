"""Plans by bytes: never over, the same bits, no slower than need be."""

import itertools

import pytest
import torch
from architectures import batch_of, build

from megaselect import ledger, recompute
from megaselect.errors import ConfigError, RecomputeError
from megaselect.planning.cut import cheapest, fastest, saved_bytes
from megaselect.recomputation.tape.graph import Graph, GraphOperator, GraphValue

SHARES = (1.0, 0.8, 0.6, 0.45, 0.35)


def step(model, batch):
    torch.manual_seed(3)
    model.zero_grad()
    with ledger.record(model) as rows:
        loss = model(**batch).loss
    loss.backward()
    return rows.total, [loss.detach(), *(part.grad.clone() for part in model.parameters() if part.grad is not None)]


@pytest.mark.parametrize("name", ["gpt2", "llama", pytest.param("t5", marks=pytest.mark.soak)])
def test_a_plan_saves_no_more_than_its_budget_and_has_the_same_bits(name):
    model, batch = build(name), batch_of(name)
    none, wanted = step(model, batch)
    saved = []
    for share in SHARES:
        plan = recompute(model, saved=int(share * none), batch=batch)
        for _ in range(2):  # recorded, then followed
            found, tensors = step(model, batch)
            assert found <= share * none
            assert all(map(torch.equal, tensors, wanted))
        assert plan.unproved == {}
        saved.append(found)
        plan.undo()
    assert saved == sorted(saved, reverse=True)
    assert saved[0] > saved[-1]


def test_a_step_takes_no_more_memory_than_was_given():
    model, batch = build("gpt2"), batch_of("gpt2")
    _, wanted = step(model, batch)
    there = sum(part.nbytes for part in (*model.parameters(), *model.buffers())) + 2 * sum(
        part.nbytes for part in model.parameters()
    )
    peaks = []
    for share in (1 << 20, 0.95, 0.9):
        budget = there + int(share * (peaks[0] if peaks else 1 << 20))
        plan = recompute(model, memory=budget, batch=batch)
        model.zero_grad(set_to_none=True)
        with ledger.LiveBytes() as live:
            torch.manual_seed(3)
            model(**batch).loss.backward()
        assert there + live.peak <= budget
        assert all(map(torch.equal, step(model, batch)[1], wanted))
        peaks.append(live.peak)
        plan.undo()
    assert peaks[0] > peaks[-1]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"saved": 1}, RecomputeError, "give a setting, or one of memory and saved with a batch"),
        ({"saved": 1, "memory": 1, "batch": {}}, RecomputeError, "one of memory and saved"),
        ({"saved": "2 pounds", "batch": {}}, ConfigError, "must be a size such as 24GiB"),
        ({"saved": -1, "batch": {}}, RecomputeError, "saved=-1 must be a number of bytes"),
    ],
)
def test_what_is_no_budget_is_said_in_a_line(given, error, said):
    with pytest.raises(error, match=said):
        recompute(build("gpt2"), **(given | ({"batch": batch_of("gpt2")} if "batch" in given else {})))


def test_too_little_is_said_with_the_least():
    model = build("gpt2")
    with pytest.raises(RecomputeError, match=r"saved=64 bytes is too little for GPT2LMHeadModel .* least is about \d"):
        recompute(model, saved=64, batch=batch_of("gpt2"))
    recompute(model, "selective").undo()  # nothing was left behind


def random_graph(generator, count):
    """Operators in a row, each of which reads some values before it."""
    values, operators = {0: GraphValue(0, 100, None, False, True)}, {}
    for number in range(1, count + 1):
        place = ("", "", number)
        reads = tuple(int(one) for one in torch.randperm(number, generator=generator)[: 1 + number % 2])
        nbytes, needed = (int(torch.randint(low, 100, (), generator=generator)) for low in (1, 0))
        values[number] = GraphValue(number, nbytes, place, needed > 40 or number == count, True)
        operators[place] = GraphOperator(place, reads, (number,), 0, None)
    return Graph(values, operators)


def all_cuts(graph, seconds):
    """(bytes, seconds) of every set of operators."""
    for count in range(len(graph.operators) + 1):
        for chosen in itertools.combinations(graph.operators, count):
            yield saved_bytes(graph, frozenset(chosen)), sum(seconds[place] for place in chosen)


@pytest.mark.parametrize("seed", range(12))
def test_a_cut_is_the_best_of_all_sets_at_its_price_and_never_over_a_budget(seed):
    generator = torch.Generator().manual_seed(seed)
    graph = random_graph(generator, 9)
    seconds = {place: float(torch.rand((), generator=generator)) for place in graph.operators}
    cuts = list(all_cuts(graph, seconds))
    for price in (0.0, 3.0, 30.0, 300.0):
        found = cheapest(graph, seconds, price)
        least = min(nbytes + price * time for nbytes, time in cuts)
        assert found.saved + price * found.seconds == pytest.approx(least)
    for share in (1.0, 0.7, 0.5, 0.3):
        budget = int(share * cuts[0][0])
        found = fastest(graph, seconds, budget)
        possible = [time for nbytes, time in cuts if nbytes <= budget]
        assert (found is None) == (not possible)
        if found is not None:
            assert found.saved <= budget
            # Between two prices the best may be missed, by less than their distance.
            prices = [cheapest(graph, seconds, 1.5**power) for power in range(-20, 40)]
            assert found.seconds <= min(cut.seconds for cut in prices if cut.saved <= budget) + 1e-9
