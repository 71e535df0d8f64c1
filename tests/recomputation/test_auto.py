"""From a budget of bytes to a plan: the fastest of all, within the budget, with the bytes and the bits it promises."""

import functools
import itertools
import random
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build_unchecked, gradients, make_batch, make_config

from megaselect import Config
from megaselect.build import plan_automatically
from megaselect.errors import RecomputeError
from megaselect.ledger import record
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.layer_times import measured_costs
from megaselect.planning.auto import (
    ATTENTION_SETS,
    OTHER_SETS,
    Costs,
    assumed_costs,
    fastest_plan,
    problem_of,
    smallest_peak,
)
from megaselect.prediction.assumed_time import cpu_speed
from megaselect.prediction.peak import step_peak
from megaselect.prediction.saved_bytes import saved_bytes, saved_tensors
from megaselect.recomputation.plan import Chunk, RecomputePlan, no_recompute
from megaselect.recompute_modules import OTHER_MODULES

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
SETS = [first | second for first in ATTENTION_SETS for second in OTHER_SETS]
NOTHING = frozenset()
NO_DROPOUT = {"dropout_p": 0.0}
LARGE = {"vocab_size": 3000}
WIDE = {"batch": 24, "seq_length": 50}  # of which activations are the greater part; nothing of it is run
CASES = {
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3},
    "bf16": {"num_layers": 2, "dtype": "bf16"},
    "no dropout": {"num_layers": 2, **NO_DROPOUT},
    "fused": {"num_layers": 2, "attention": "fused"},
    "large vocabulary": {"num_layers": 2, **LARGE},
    "loss in chunks": {"num_layers": 2, **LARGE, "loss_chunk_tokens": 8},
    "two micro-batches": {"num_layers": 2, "micro_batches": 2},
    "compiled": {"num_layers": 2, "compiled": True},
    "compiled, without dropout": {"num_layers": 2, "compiled": True, **NO_DROPOUT},
    "sdpa": {"num_layers": 2, "attention": "sdpa", "attention_dropout_p": 0.0},
}


def config_of(micro_batches=1, compiled=False, **model):
    config = make_config(**model)
    whole = micro_batches * config.training.micro_batch_size
    return Config.from_dict(
        config.to_dict(), overrides={"training.global_batch_size": whole, "training.compile": compiled}
    )


def problem(case, on_gpu=False):
    config = config_of(**WIDE, **CASES[case])
    return problem_of(config, ELEMENT_BYTES[config.training.dtype], on_gpu)


def drawn_costs(seed):
    """Any times at all, of up to ten milliseconds."""
    draw = random.Random(seed)
    attention = {modules: draw.randrange(10**7) if modules else 0 for modules in ATTENTION_SETS}
    others = {name: draw.randrange(10**7) for name in OTHER_MODULES}
    return Costs(attention, others, draw.randrange(10**7))


def every_plan(layers):
    """Each layer with any set of modules or inside a checkpointed chunk of any length, the embedding's mask or not."""
    for cuts in itertools.product([False, True], repeat=layers - 1):
        ends = [end for end, cut in enumerate((*cuts, True), 1) if cut]
        spans = list(zip([0, *ends], ends, strict=False))
        options = [[(NOTHING, True)] + [(one, False) for one in SETS] * (end - first == 1) for first, end in spans]
        for taken in itertools.product(*options):
            chunks = tuple(
                Chunk(first, end - first, checkpointed)
                for (first, end), (_, checkpointed) in zip(spans, taken, strict=True)
            )
            pairs = zip(spans, taken, strict=True)
            modules = tuple(one for (first, end), (one, _) in pairs for _ in range(end - first))
            for recomputes_mask in (False, True):
                yield RecomputePlan("auto", modules, chunks, recomputes_mask)


def cost_of(plan, costs):
    return sum(
        chunk.count * costs.layer if chunk.checkpointed else costs.of(plan.modules[chunk.first])
        for chunk in plan.chunks
    )


def frontier(of_problem, costs):
    """(peak, cost) of the plans than which none has both a lower peak and a lower cost, by peak."""
    pairs = {
        (step_peak(of_problem.shape, plan, of_problem.static, of_problem.situation).bytes, cost_of(plan, costs))
        for plan in every_plan(of_problem.layers)
    }
    best, least = [], None
    for peak, cost in sorted(pairs):
        if least is None or cost < least:
            best.append((peak, cost))
            least = cost
    return best


WHERE = {"cpu": False, "gpu": True}
# Three layers have two thousand plans and more: once in `make test`.
LONG = ("three layers", "gpu")


@pytest.mark.parametrize(
    ("case", "on_gpu"),
    [
        pytest.param(case, on_gpu, id=f"{case}-{where}", marks=pytest.mark.soak if (case, where) == LONG else ())
        for case in CASES
        for where, on_gpu in WHERE.items()
    ],
)
def test_no_plan_that_fits_is_faster(case, on_gpu):
    """For every budget there is: at each peak of the frontier, and a byte below."""
    of_problem, costs = problem(case, on_gpu), drawn_costs(case)
    best = frontier(of_problem, costs)
    assert len(best) > 3
    assert smallest_peak(of_problem, costs).bytes == best[0][0]
    for budget, cost in best:
        found = fastest_plan(of_problem, lambda: costs, budget)
        assert round(found.extra_seconds * 1e12) == cost
        assert found.peak == step_peak(of_problem.shape, found.plan, of_problem.static, of_problem.situation)
        assert found.peak.bytes <= budget == found.budget_bytes
        assert cost_of(found.plan, costs) == cost
    for (budget, _), (_, cost_of_less) in zip(best[1:], best, strict=False):
        assert round(fastest_plan(of_problem, lambda: costs, budget - 1).extra_seconds * 1e12) == cost_of_less
    with pytest.raises(RecomputeError):
        fastest_plan(of_problem, lambda: costs, best[0][0] - 1)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(list(CASES)), st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_more_memory_never_costs_time(case, seed, first, second):
    of_problem, costs = problem(case), drawn_costs(seed)
    low = smallest_peak(of_problem, costs).bytes
    high = step_peak(of_problem.shape, no_recompute(of_problem.layers), of_problem.static, of_problem.situation).bytes
    less, more = (low + int(share * (high - low)) for share in sorted((first, second)))
    assert (
        fastest_plan(of_problem, lambda: costs, more).extra_seconds
        <= fastest_plan(of_problem, lambda: costs, less).extra_seconds
    )
    assert fastest_plan(of_problem, lambda: costs, less) == fastest_plan(of_problem, lambda: costs, less)


def test_where_everything_fits_nothing_is_measured():
    of_problem = problem("three layers")
    peak = step_peak(of_problem.shape, no_recompute(3), of_problem.static, of_problem.situation)
    found = fastest_plan(of_problem, lambda: pytest.fail("measured"), peak.bytes)
    assert found == (no_recompute(3, mode="auto"), peak, 0.0, peak.bytes)


@pytest.mark.parametrize("case", CASES)
def test_a_budget_that_cannot_be_met_says_by_how_much_and_that_is_enough(case):
    of_problem, costs = problem(case), drawn_costs(case)
    least = smallest_peak(of_problem, costs)
    budget = least.bytes - 123_456
    with pytest.raises(RecomputeError) as refused:
        fastest_plan(of_problem, lambda: costs, budget)
    text = re.escape(
        f"--recompute auto cannot keep a step within --memory {budget:,} bytes: the least that any plan needs is "
        f"{least.bytes:,} bytes (123,456 more, in the {least.moment}), of which "
    )
    assert re.match(text, str(refused.value))
    assert fastest_plan(of_problem, lambda: costs, budget + 123_456).peak.bytes == least.bytes
    with pytest.raises(RecomputeError, match=re.escape("(1 more, in")):
        fastest_plan(of_problem, lambda: costs, least.bytes - 1)


@functools.cache
def model_and_none(case):
    """A model, its config, and loss and gradients of none."""
    config = config_of(**MEASURED[case])
    model = build_unchecked(config)
    apply_recompute(model, no_recompute(config.model.num_layers))
    return model, config, loss_and_gradients(model, config)[:2]


def loss_and_gradients(model, config):
    model.zero_grad()
    with record(model) as ledger:
        loss = model(*make_batch(config))
    loss.backward()
    return loss.detach(), {name: grad.clone() for name, grad in gradients(model).items()}, ledger


MEASURED = {
    "fp32": {"num_layers": 5},
    "bf16": {"num_layers": 5, "dtype": "bf16", "batch": 8},
    "fused": {"num_layers": 4, "attention": "fused"},
    "no dropout": {"num_layers": 4, **NO_DROPOUT},
}


def assert_as_promised(case, plan):
    """The ledger's rows are the plan's, and loss and gradients are those of none."""
    model, config, (loss, grads) = model_and_none(case)
    shape = problem_of(config, ELEMENT_BYTES[config.training.dtype], False).shape
    apply_recompute(model, plan)
    found_loss, found, ledger = loss_and_gradients(model, config)
    rows = saved_tensors(shape, plan)
    assert ledger.by_name() == {(row.layer, row.name): row.bytes for row in rows}
    assert ledger.total == saved_bytes(shape, plan)
    assert torch.equal(found_loss, loss)
    assert [name for name in grads if not torch.equal(found[name], grads[name])] == []


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sampled_from(list(MEASURED)), st.integers(0, 99), st.floats(0, 0.99))
def test_a_plan_keeps_what_it_says_and_changes_no_bit(case, seed, share):
    _, config, _ = model_and_none(case)
    of_problem, costs = problem_of(config, ELEMENT_BYTES[config.training.dtype], False), drawn_costs(seed)
    low = smallest_peak(of_problem, costs).bytes
    none = no_recompute(of_problem.layers)
    high = step_peak(of_problem.shape, none, of_problem.static, of_problem.situation).bytes
    found = fastest_plan(of_problem, lambda: costs, low + int(share * (high - low)))
    assert_as_promised(case, found.plan)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(list(MEASURED)), st.data())
def test_any_mixture_of_layers_keeps_what_it_says_and_changes_no_bit(case, data):
    """Chunks beside layers that recompute what no other does, which no mode but auto has."""
    layers = MEASURED[case]["num_layers"]
    modules, chunks = [], []
    while len(modules) < layers:
        checkpointed = data.draw(st.booleans())
        count = data.draw(st.integers(1, layers - len(modules))) if checkpointed else 1
        chunks.append(Chunk(len(modules), count, checkpointed))
        modules += [NOTHING if checkpointed else data.draw(st.sampled_from(SETS))] * count
    assert_as_promised(case, RecomputePlan("auto", tuple(modules), tuple(chunks), data.draw(st.booleans())))


def test_costs_are_measured_for_each_choice_and_leave_no_trace():
    config = make_config(hidden_size=64, seq_length=64, num_attention_heads=4)
    model = build_unchecked(config)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    costs = measured_costs(model.blocks[0], model.config, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(costs.attention) == set(ATTENTION_SETS)
    assert costs.attention[NOTHING] == 0
    assert all(
        isinstance(cost, int) and cost >= 0 for cost in [*costs.attention.values(), *costs.others.values(), costs.layer]
    )
    assert costs.layer > 0  # a whole forward again


def test_assumed_costs_are_ordered_as_the_work_is():
    shape = problem("three layers").shape
    costs = assumed_costs(shape, cpu_speed())
    assert costs.attention[NOTHING] == 0
    assert costs.layer > costs.of(frozenset({"core_attn", "dropout", "layernorm", "gelu"})) > costs.others["gelu"] > 0
    assert costs.attention[frozenset({"core_attn", "dropout"})] > costs.attention[frozenset({"softmax", "dropout"})]
    both = frozenset({"layernorm", "gelu", "core_attn"})
    assert costs.of(both) == sum(costs.others.values()) + costs.attention[frozenset({"core_attn"})]


def test_the_config_s_memory_is_the_budget():
    def planned(memory):
        config = make_config({"mode": "auto", "memory": memory}, num_layers=3)
        return plan_automatically(config, build_unchecked(make_config(num_layers=3)).blocks[0])

    assert planned("1GiB").budget_bytes == 2**30
    assert planned("1GiB").plan == no_recompute(3, mode="auto")
    assert planned("1.9MB").peak.bytes <= 1_900_000
    with pytest.raises(RecomputeError, match=r"raise --memory or lower --training\.micro-batch-size"):
        planned("1MB")


def test_without_memory_the_budget_is_what_the_device_has_free(monkeypatch):
    monkeypatch.setattr("megaselect.build.free_bytes", lambda device: 2**40 if device.type == "cpu" else 0)
    config = make_config({"mode": "auto"}, num_layers=3)
    assert plan_automatically(config, build_unchecked(make_config(num_layers=3)).blocks[0]).budget_bytes == 2**40


@pytest.mark.compiles
@pytest.mark.soak
def test_a_mixed_plan_of_compiled_layers_keeps_what_it_says_and_changes_no_bit():
    config = make_config(num_layers=3)
    shape = replace(problem_of(config, 4, False).shape, compiled=True)
    model = build_unchecked(config)
    chunks = (Chunk(0, 1, True), Chunk(1, 1, False), Chunk(2, 1, False))
    mixed = RecomputePlan("auto", (NOTHING, frozenset({"softmax", "dropout", "gelu"}), NOTHING), chunks, True)
    found = {}
    for plan in (no_recompute(3), mixed):
        apply_recompute(model, plan, compiled=True)
        loss, grads, ledger = loss_and_gradients(model, config)
        found[plan.mode] = {"loss": loss, **grads}
        assert ledger.total == saved_bytes(shape, plan)
    assert [name for name, value in found["none"].items() if not torch.equal(found["auto"][name], value)] == []
