"""Any number of ranks, any sharding, any recompute setting: the bits of one process."""

import functools

import pytest
import torch
import trials

SETTINGS = {
    "none": {"mode": "none"},
    "selective": {"mode": "selective"},
    "all": {"mode": "selective", "modules": ["all"]},
    "full": {"mode": "full"},
    "full sqrt": {"mode": "full", "method": "sqrt"},
}
SHARDINGS = {
    "parameters": {"sharding": "parameters"},
    "gradients": {"sharding": "gradients"},
    "none": {"sharding": "none"},
}


@functools.cache
def alone(setting="none", dtype="fp32", attention="unfused"):
    """One process's training."""
    return trials.alone(config_of(setting, dtype, attention))


def config_of(setting="none", dtype="fp32", attention="unfused", **training):
    return {
        "recompute": SETTINGS[setting],
        "training": {"dtype": dtype, **training},
        "model": {"attention": attention},
    }


def joined(results):
    """Name -> the whole tensor, from what each rank holds; what several hold must be alike."""
    found = {}
    for _, pieces, *_ in results:
        for name, (rows, tensor) in pieces.items():
            place = rows[0] if rows else 0
            other = found.setdefault(name, {}).setdefault(place, tensor)
            assert torch.equal(other, tensor), (name, place)
    return {
        name: torch.cat([parts[place] for place in sorted(parts)]) if len(parts) > 1 else parts[0]
        for name, parts in found.items()
    }


def rounded(tensors, dtype):
    """As a checkpoint holds them: weights in the dtype that the model computes in."""
    names = [name for name in tensors if not name.startswith(("exp_avg", "step.", "master."))]
    return tensors | {name: tensors[name].to(dtype) for name in names}


def assert_same(results, expected, dtype=torch.float32):
    log, _, saved, loss = expected
    for own_log, _, own_saved, own_loss in results:
        assert own_log == log
        assert own_saved == saved
        assert own_loss == loss
    ours, theirs = rounded(joined(results), dtype), rounded(joined([expected]), dtype)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_any_number_of_ranks_has_the_bits_of_one_process(pool, ranks, sharding):
    results = pool.run(ranks, "trials", "training", config_of={**config_of(), "parallel": SHARDINGS[sharding]})
    assert_same(results, alone())


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "none"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_in_every_recompute_setting(pool, setting, sharding):
    parallel = SHARDINGS[sharding]
    results = pool.run(2, "trials", "training", config_of={**config_of(setting), "parallel": parallel})
    assert_same(results, alone(setting))
    assert results[0][0] == alone()[0]


@pytest.mark.parametrize("sharding", ["parameters", "gradients"])
def test_replicas_of_groups_that_share(pool, sharding):
    parallel = {"sharding": sharding, "replicas": 2}
    results = pool.run(4, "trials", "training", config_of={**config_of("all"), "parallel": parallel})
    assert_same(results, alone("all"))


@pytest.mark.parametrize("attention", ["fused", "sdpa"])
def test_with_other_attention(pool, attention):
    settings = config_of("all", attention=attention)
    if attention == "sdpa":
        settings["model"]["attention_dropout_p"] = 0.0
    results = pool.run(2, "trials", "training", config_of=settings)
    assert_same(results, trials.alone(settings))


@pytest.mark.compiles
@pytest.mark.parametrize("sharding", ["parameters", "none"])
def test_compiled(pool, sharding):
    settings = config_of("all", compile=True)
    results = pool.run(2, "trials", "training", config_of={**settings, "parallel": SHARDINGS[sharding]})
    assert_same(results, trials.alone(settings))


@pytest.mark.parametrize("sharding", SHARDINGS)
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


def test_replicas_by_torchs_own_reduction(pool):
    parallel = {"reduction": "native", "replicas": 2}
    results = pool.run(4, "trials", "training", config_of={**config_of(), "parallel": parallel})
    assert joined(results).keys() == joined([alone()]).keys()
    assert results[0][0][-1][0] == pytest.approx(alone()[0][-1][0], rel=1e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_in_16_bits(pool, dtype, sharding):
    settings = {**config_of("selective", dtype), "parallel": SHARDINGS[sharding]}
    results = pool.run(3, "trials", "training", config_of=settings)
    assert_same(results, alone("selective", dtype), {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
