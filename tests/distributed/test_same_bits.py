"""Any number of ranks, any sharding, any recompute setting: the bits of one process."""

import itertools

import pytest
import torch
import trials
from same_bits import SETTINGS, SHARDINGS, alone, config_of, differences, joined


def soaked(quick, cases):
    """Cases of which all but the quick ones are left to `make soak`."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.soak) for case in cases]


@pytest.mark.parametrize(
    ("ranks", "sharding"),
    soaked(
        {(2, "parameters"), (3, "parameters"), (2, "gradients"), (4, "none")}, itertools.product((2, 3, 4), SHARDINGS)
    ),
)
def test_any_number_of_ranks_has_the_bits_of_one_process(pool, ranks, sharding):
    results = pool.run(ranks, "trials", "training", config_of={**config_of(), "parallel": SHARDINGS[sharding]})
    assert not differences(results, alone())


@pytest.mark.parametrize(
    ("sharding", "setting"),
    soaked({("parameters", "all"), ("none", "full")}, itertools.product(SHARDINGS, list(SETTINGS)[1:])),
)
def test_in_every_recompute_setting(pool, sharding, setting):
    parallel = SHARDINGS[sharding]
    results = pool.run(2, "trials", "training", config_of={**config_of(setting), "parallel": parallel})
    assert not differences(results, alone(setting))
    assert results[0][0] == alone()[0]


@pytest.mark.parametrize("sharding", ["parameters", pytest.param("gradients", marks=pytest.mark.soak)])
def test_replicas_of_groups_that_share(pool, sharding):
    parallel = {"sharding": sharding, "replicas": 2}
    results = pool.run(4, "trials", "training", config_of={**config_of("all"), "parallel": parallel})
    assert not differences(results, alone("all"))


@pytest.mark.soak
@pytest.mark.parametrize("attention", ["fused", "sdpa"])
def test_with_other_attention(pool, attention):
    settings = config_of("all", attention=attention)
    if attention == "sdpa":
        settings["model"]["attention_dropout_p"] = 0.0
    results = pool.run(2, "trials", "training", config_of=settings)
    assert not differences(results, trials.alone(settings))


@pytest.mark.soak
@pytest.mark.compiles
@pytest.mark.parametrize("sharding", ["parameters", "none"])
def test_compiled(pool, sharding):
    settings = config_of("all", compile=True)
    results = pool.run(2, "trials", "training", config_of={**settings, "parallel": SHARDINGS[sharding]})
    assert not differences(results, trials.alone(settings))


@pytest.mark.parametrize(
    "sharding", ["none", *(pytest.param(name, marks=pytest.mark.soak) for name in ("parameters", "gradients"))]
)
def test_torchs_own_reduction_adds_in_another_order(pool, sharding):
    """So the ordered one is not equal by chance."""
    parallel = {"reduction": "native", **SHARDINGS[sharding]}
    results = pool.run(4, "trials", "training", config_of={**config_of(), "parallel": parallel})
    ours, one = joined(results), joined([alone()])
    assert any(not torch.equal(ours[name], one[name]) for name in one)
    assert results[0][0][0][0] == alone()[0][0][0]  # the loss of the first step
    for (loss, norm, *_), (other_loss, other_norm, *_) in zip(results[0][0], alone()[0], strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-3)
        assert norm == pytest.approx(other_norm, rel=1e-2)


@pytest.mark.soak
def test_replicas_by_torchs_own_reduction(pool):
    parallel = {"reduction": "native", "replicas": 2}
    results = pool.run(4, "trials", "training", config_of={**config_of(), "parallel": parallel})
    assert joined(results).keys() == joined([alone()]).keys()
    assert results[0][0][-1][0] == pytest.approx(alone()[0][-1][0], rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "sharding"),
    soaked({("bf16", "parameters"), ("fp16", "none")}, itertools.product(("bf16", "fp16"), SHARDINGS)),
)
def test_in_16_bits(pool, dtype, sharding):
    settings = {**config_of("selective", dtype), "parallel": SHARDINGS[sharding]}
    results = pool.run(3, "trials", "training", config_of=settings)
    assert not differences(results, alone("selective", dtype), {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
