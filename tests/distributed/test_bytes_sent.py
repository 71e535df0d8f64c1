"""Sums in the order of micro-batches send as many bytes as torch's own reduction, to the byte."""

import math

import pytest

ORDERED, NATIVE = "ordered", "native"
LOSSES, NORM = 4, 8 + 16  # bytes a rank sends to each other one: a micro-batch's loss, and what the norm is made of


def sent(pool, ranks, micro_batches, **parallel):
    """Bytes that each rank sends in a step; shapes of the blocks' weights, and of the others."""
    results = pool.run(ranks, "sent", "in_a_step", parallel=parallel, micro_batches=micro_batches)
    totals = {sum(of_rank.values()) for of_rank, _ in results}
    assert len(totals) == 1  # no rank sends more than another
    return totals.pop(), results[0][1]


def part_bytes(shapes, shards):
    """Of a rank's rows of fp32 weights that are cut, filled up to as many as any rank has."""
    return sum(4 * -(-shape[0] // shards) * math.prod(shape[1:]) for shape in shapes)


@pytest.mark.parametrize("micro_batches", [pytest.param(4, marks=pytest.mark.soak), 12])
@pytest.mark.parametrize("sharding", ["parameters", "gradients"])
@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), pytest.param(4, 1, marks=pytest.mark.soak), (4, 2)])
def test_shared_weights(pool, ranks, replicas, sharding, micro_batches):
    settings = {"sharding": sharding, "replicas": replicas}
    ours, (blocks, others) = sent(pool, ranks, micro_batches, reduction=ORDERED, **settings)
    theirs, _ = sent(pool, ranks, micro_batches, reduction=NATIVE, **settings)
    # Replicas' parts of a shard are filled up to equal ones, in torch's reduction as in ours.
    assert ours == theirs
    if replicas == 1:
        rounds, receivers = micro_batches // ranks, ranks - 1
        # Gathered for forward and, where blocks let go of them, for backward; their gradients are summed up.
        weights = {"parameters": 3, "gradients": 2}[sharding] * part_bytes(blocks, ranks) + 2 * part_bytes(
            others, ranks
        )
        assert ours == receivers * (rounds * (weights + LOSSES) + NORM)


@pytest.mark.parametrize("ranks", [2, 4])
def test_whole_weights_with_a_micro_batch_a_rank(pool, ranks):
    ours, _ = sent(pool, ranks, ranks, sharding="none", reduction=ORDERED)
    theirs, (blocks, others) = sent(pool, ranks, ranks, sharding="none", reduction=NATIVE)
    assert ours == theirs
    weights = part_bytes(blocks + others, 1)
    assert weights * 2 * (ranks - 1) / ranks <= ours < 1.01 * weights * 2 * (ranks - 1) / ranks


def test_whole_weights_send_every_round_where_torch_sends_once(pool):
    """An order of micro-batches has the second round's gradients come after the sum of the first."""
    rounds = 3
    once, _ = sent(pool, 2, 2, sharding="none", reduction=ORDERED)
    ours, _ = sent(pool, 2, 2 * rounds, sharding="none", reduction=ORDERED)
    theirs, _ = sent(pool, 2, 2 * rounds, sharding="none", reduction=NATIVE)
    half = (once - LOSSES) // 2
    assert ours - rounds * LOSSES == (rounds + 1) * half
    assert theirs - rounds * LOSSES == 2 * half


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_each_function_sends(pool, ranks):
    """10 elements a rank: an all-reduce of 10 over 3 ranks sends parts of 4."""
    for found in pool.run(ranks, "sent", "by_each_function", elements=10):
        assert found == {
            "all_gather": (ranks - 1) * 40,
            "reduce_scatter": (ranks - 1) * 40,
            "all_to_all": (ranks - 1) * 40,
            "all_reduce": 2 * (ranks - 1) * {2: 20, 3: 16}[ranks],
        }


def test_what_has_no_rule_is_refused(pool):
    assert (
        pool.run(2, "sent", "by_what_has_no_rule")
        == ["no rule says how many bytes torch.distributed.broadcast sends"] * 2
    )
