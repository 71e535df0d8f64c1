"""`megaselect.recompute` on two ranks: DDP and FSDP2, whose gathered parameters are freed before backward."""

import pytest
import torch
from recomputed_ranks import SHARDED

SETTINGS = ["selective", "full"]


def both_ranks(pool, kind, setting, **options):
    """Of each rank: what differs from an untouched model, and two numbers of bytes."""
    return pool.run(2, "recomputed_ranks", "differences", kind=kind, setting=setting, **options)


def different(pool, kind, setting, **options):
    return [names for names, _, _ in both_ranks(pool, kind, setting, **options)]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("plan_first", [True, False])
@pytest.mark.parametrize("kind", ["replicated", *SHARDED])
def test_same_bits(pool, kind, plan_first, setting):
    assert different(pool, kind, setting, plan_first=plan_first) == [[], []]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("reshard", [True, False])
def test_mixed_precision(pool, reshard, setting):
    assert different(pool, "layers", setting, bfloat16=True, reshard=reshard) == [[], []]


def test_gathered_weights_are_not_counted_as_saved(pool):
    """FSDP frees and gathers them; what is more than with DDP are copies of small parameters."""
    [(_, _, replicated), _] = both_ranks(pool, "replicated", "selective")
    [(_, _, sharded), _] = both_ranks(pool, "layers", "selective")
    norms = 2 * 2 * 2 * 32 * torch.float32.itemsize  # weight and bias of two norms in each of two layers
    assert replicated <= sharded <= replicated + 2 * norms
