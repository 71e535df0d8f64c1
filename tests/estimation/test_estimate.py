"""The prediction agrees with what runs, with itself, and with the arithmetic of many ranks."""

import json
from dataclasses import replace

import pytest
from tiny_models import build_unchecked, make_batch, make_config

from megaselect.config import Config
from megaselect.errors import ConfigError, RecomputeError
from megaselect.estimation.as_data import as_data
from megaselect.estimation.estimate import estimate, estimate_for, module_sets
from megaselect.estimation.target import resolve_target
from megaselect.ledger import record
from megaselect.prediction.parallel import Parallel
from megaselect.prediction.saved_bytes import LayerShape
from megaselect.recompute_modules import MODULES

SETTINGS = {
    "none": {},
    "selective": {"mode": "selective"},
    "core_attn dropout": {"mode": "selective", "modules": ["core_attn", "dropout"]},
    "all": {"mode": "selective", "modules": "all"},
    "full": {"mode": "full"},
    "full sqrt": {"mode": "full", "method": "sqrt"},
}
A100 = resolve_target("a100-80gb", None, "bf16")


@pytest.mark.parametrize("attention", ["unfused", "fused"])
@pytest.mark.parametrize("name", SETTINGS)
def test_saved_bytes_are_those_that_the_ledger_measures(name, attention, on_cpu):
    config = make_config(SETTINGS[name], attention=attention, batch=3)
    row = estimate_for(make_config(batch=3), on_cpu()).rows[attention][name]
    model = build_unchecked(config)
    with record(model) as ledger:
        model(*make_batch(config))
    assert row.rank.saved == ledger.total
    assert row.saved_bytes_per_layer == ledger.by_layer()[next(layer for layer in ledger.by_layer() if layer)]
    by_name: dict[str, int] = {}
    for kept in ledger.rows:
        by_name[kept.name] = by_name.get(kept.name, 0) + kept.bytes
    assert row.rank.by_name == by_name


def test_every_set_of_modules_is_a_row(on_cpu):
    predicted = estimate_for(make_config(), on_cpu())
    rows = module_sets(predicted.case, "unfused")
    assert len(rows) == 2 ** len(MODULES) - 1
    assert rows["softmax dropout"].rank == predicted.rows["unfused"]["selective"].rank
    assert rows[" ".join(MODULES)].rank == predicted.rows["unfused"]["all"].rank


def test_sdpa_is_a_choice_where_attention_drops_nothing(on_cpu):
    assert list(estimate_for(make_config(), on_cpu()).rows) == ["unfused", "fused"]
    assert list(estimate_for(make_config(attention_dropout_p=0.0), on_cpu()).rows) == ["unfused", "fused", "sdpa"]


def test_the_largest_micro_batch_fits_and_one_more_does_not(on_cpu):
    config = make_config()
    rows = estimate_for(config, on_cpu("9MiB")).rows["unfused"]
    assert len({row.largest_micro_batch for row in rows.values()}) > 3
    for name, row in rows.items():
        for batch, fits in ((row.largest_micro_batch, True), (row.largest_micro_batch + 1, False)):
            overrides = {"training.micro_batch_size": batch, "training.global_batch_size": batch}
            larger = Config.from_dict(config.to_dict(), overrides=overrides)
            peak = estimate_for(larger, on_cpu("9MiB")).rows["unfused"][name].rank.peak.bytes
            assert (peak <= 9 * 2**20) == fits, (name, batch)


def test_the_config_s_own_setting_is_a_row(on_cpu):
    recompute = {"mode": "full", "method": "block", "num_layers": 2}
    predicted = estimate_for(make_config(recompute), on_cpu())
    assert predicted.own == ("unfused", "as configured")
    row, full = (predicted.rows["unfused"][name] for name in ("as configured", "full"))
    assert row.saved_bytes_per_layer > full.saved_bytes_per_layer  # two layers keep everything
    assert estimate_for(make_config({"mode": "selective", "modules": list(MODULES)}), on_cpu()).own == (
        "unfused",
        "all",
    )
    assert estimate_for(make_config({"mode": "full", "num_layers": 1}), on_cpu()).own == ("unfused", "full")


def test_auto_is_the_cheapest_row_that_fits(on_cpu):
    everything = estimate_for(make_config(), on_cpu()).rows["unfused"]
    budget = everything["all"].rank.peak.bytes + 50_000
    rows = estimate_for(make_config({"mode": "auto"}), on_cpu(f"{budget / 2**20:.6f}MiB")).rows["unfused"]
    assert rows["auto"].rank.peak.bytes <= budget
    fitting = [row for row in rows.values() if row.rank.peak.bytes <= budget]
    assert rows["auto"].step_seconds == min(row.step_seconds for row in fitting)
    assert rows["auto"].step_seconds < rows["all"].step_seconds < rows["none"].step_seconds * 2


def test_auto_says_what_it_cannot_plan(on_cpu):
    with pytest.raises(RecomputeError, match="--recompute auto cannot keep a step within --memory 1,048,576 bytes"):
        estimate_for(make_config({"mode": "auto"}), on_cpu("1MiB"))
    unknown = replace(on_cpu(), name="NVIDIA Z1", speed=None)
    with pytest.raises(ConfigError, match="--recompute auto: no speed is on file for NVIDIA Z1; name a GPU"):
        estimate_for(make_config({"mode": "auto"}), unknown)
    assert estimate_for(make_config(), unknown).rows["unfused"]["none"].step_seconds is None
    with pytest.raises(ConfigError, match="--recompute auto plans for layouts that train"):
        estimate_for(make_config({"mode": "auto"}), on_cpu(), Parallel(gpus=2, tensor=2))


def test_layers_by_number_in_a_pipeline_are_refused(on_cpu):
    config = make_config({"mode": "selective", "layers": "0-1"})
    with pytest.raises(ConfigError, match="--recompute-layers with --pipeline-parallel is not predicted"):
        estimate_for(config, on_cpu(), Parallel(gpus=2, pipeline=2))


def test_something_fits_or_nothing_does(on_cpu):
    assert estimate_for(make_config(), on_cpu()).something_fits
    assert not estimate_for(make_config(), on_cpu("1MiB")).something_fits


def test_ranks_share_what_the_layout_says(shipped):
    config = shipped("paper-22b")
    alone = estimate_for(config, A100).rows["unfused"]["none"]
    shared = estimate_for(config, A100, Parallel(gpus=8, tensor=8, sequence=True)).rows["unfused"]["none"]
    shape = LayerShape.of(config, 2)
    whole = 8 * shape.batch + 20 * shape.tokens  # sample indices, token indices, targets, log-sum-exp: on every rank
    assert 8 * (shared.rank.saved - whole) == alone.rank.saved - whole
    assert 8 * shared.model_flops == alone.model_flops
    assert 8 * shared.saved_bytes_per_layer == alone.saved_bytes_per_layer


def sharing(config, **parallel):
    """The config with another section `parallel`."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})


def test_ranks_share_what_the_section_says(shipped):
    config, parameters, steps = shipped("gpt-1.3b"), 1_315_819_520, 4 * (24 * 12 + 4)
    for sharding, replicas, shards in [("none", 1, 1), ("gradients", 1, 8), ("parameters", 1, 8), ("parameters", 2, 4)]:
        shared = sharing(config, sharding=sharding, replicas=replicas)
        static = estimate_for(shared, A100, Parallel(gpus=8)).rows["fused"]["all"].rank.static
        rows = parameters // shards  # they divide
        copies = {"weights": 2 * rows, "master_weights": 4 * rows}
        weights = copies if shards == 1 else {"weights": 4 * rows, "master_weights": 0}
        assert vars(static) == {**weights, "gradients": 4 * rows, "optimizer": 8 * rows + steps}, (sharding, replicas)


def test_weights_that_stay_gathered_are_there_at_the_peak(shipped):
    """With the loss the highest moment: every layer's, in place of the one's that backward has asked for."""
    config = shipped("gpt-1.3b")
    rows = [
        estimate_for(sharing(config, sharding=name), A100, Parallel(gpus=8)).rows["fused"]["all"]
        for name in ("gradients", "parameters")
    ]
    layer = 2 * (12 * 2048**2 + 13 * 2048)
    assert {row.rank.peak.moment for row in rows} == {"loss"}
    assert rows[0].rank.peak.bytes - rows[1].rank.peak.bytes == 23 * layer


def of_ranks(config, ranks):
    """The config with a micro-batch for each of so many ranks."""
    whole = ranks * config.training.micro_batch_size
    return config.model_copy(update={"training": config.training.model_copy(update={"global_batch_size": whole})})


def test_auto_plans_for_the_ranks_of_a_layout(on_cpu):
    config = of_ranks(make_config({"mode": "auto"}), 2)
    alone = estimate_for(config, on_cpu("1GiB")).rows["unfused"]
    shared = estimate_for(config, on_cpu("1GiB"), Parallel(gpus=2)).rows["unfused"]
    assert shared["auto"].rank.peak == shared["none"].rank.peak != alone["auto"].rank.peak


def test_a_pipeline_s_first_stage_holds_a_micro_batch_for_every_stage(shipped):
    config = shipped("paper-530b")
    layout = Parallel(gpus=280, tensor=8, sequence=True, pipeline=35, virtual_stages=3)
    row = estimate_for(config, A100, layout).rows["unfused"]["core_attn dropout"]
    in_flight = 35 * 3 + 34  # chunks of one layer
    assert row.rank.stage.name == "first"
    assert sum(row.rank.by_name[name] for name in row.layer_tensors) == in_flight * row.saved_bytes_per_layer
    assert "logits" not in row.rank.by_name


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"gpus": 3, "tensor": 2}, "--gpus 3 is no multiple of tensor x pipeline = 2 x 1: use a multiple of 2"),
        ({"gpus": 5, "tensor": 5}, r"--tensor-parallel \(5\) must divide model.num_attention_heads \(4\)"),
        ({"gpus": 3, "pipeline": 3}, r"pipeline stages x virtual stages \(3\) must divide model.num_layers \(4\)"),
        ({"sequence": True}, "--sequence-parallel divides by --tensor-parallel, which is 1"),
        ({"virtual_stages": 2}, "--virtual-stages needs --pipeline-parallel of 2 or more"),
        ({"gpus": 2, "tensor": 2, "sequence": True}, r"--tensor-parallel \(2\) must divide model.seq_length \(21\)"),
        (
            {"gpus": 4},
            "4 data-parallel ranks with --training.micro-batch-size 2 do not .* 2: use a multiple of 8",
        ),
    ],
)
def test_layouts_that_do_not_divide_are_refused(layout, message, on_cpu):
    with pytest.raises(ConfigError, match=message):
        estimate_for(make_config(), on_cpu(), Parallel(**layout))


def test_data_has_the_keys_that_others_script_against(on_cpu):
    data = json.loads(json.dumps(as_data(estimate_for(make_config(batch=3), on_cpu()))))
    assert data["micro_batch_size"] == 3
    for attention in ("unfused", "fused"):
        modes = data["attention"][attention]["modes"]
        assert {"none", "selective", "all", "full"} <= modes.keys()
        for mode in modes.values():
            wanted = {"saved_bytes_per_layer", "saved_bytes", "peak_bytes", "hardware_flops", "model_flops"}
            assert wanted <= mode.keys()
            assert mode["saved_bytes"] == sum(mode["saved_bytes_by_tensor"].values())
            assert mode["saved_bytes_per_layer"] == sum(mode["layer_bytes_by_tensor"].values())
        assert len(data["attention"][attention]["module_sets"]) == 31


def test_from_python_a_device_and_memory_are_words(shipped):
    from megaselect import estimate as public

    assert public is estimate
    predicted = public(shipped("gpt2-124m"), device="h100-80gb", memory="10GiB")
    assert (predicted.case.target.usable_bytes, predicted.case.target.dtype) == (10 * 2**30, "bf16")
    assert predicted.advice.startswith("Without recomputation a step needs 19.84 GiB, more than 10.00 GiB (--memory)")
