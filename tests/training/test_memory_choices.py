"""What a step that ran out of memory could do instead, against the theory of bytes."""

from dataclasses import replace

import pytest

from megaselect.cli.train import parse_train_args
from megaselect.config import Config
from megaselect.prediction.peak import predicted_peak
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import Chunk, RecomputePlan, make_plan, no_recompute
from megaselect.recomputation.presets import PRESETS, setting_flags
from megaselect.training.memory_choices import Failed

BF16_BYTES = 2
MODEL = {"num_layers": 12, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 128, "vocab_size": 256}
MIXED = RecomputePlan(
    "auto",
    (frozenset(), *[frozenset({"softmax", "dropout"})] * 11),
    (Chunk(0, 1, True), *[Chunk(layer, 1, False) for layer in range(1, 12)]),
    recompute_embedding_mask=True,
)


def config_of(recompute=None, micro=8, total=16, **model):
    training = {"micro_batch_size": micro, "global_batch_size": total, "device": "cpu"}
    return Config.from_dict({"model": MODEL | model, "training": training, "recompute": recompute or {}})


def failed_with(config, plan=None):
    plan = plan or make_plan(config.recompute, config.model.num_layers)
    return Failed(config, plan, BF16_BYTES, on_gpu=True)


def ladder(failed):
    """The names of the settings that one after the other take the place of what ran out of memory."""
    names = []
    while (choice := failed.stronger()) is not None:
        names.append(choice.name)
        failed = replace(failed, plan=choice.plan)
    return names


ALL_OF_THEM = ["selective", "core_attn dropout", "all", "full"]
DEEP = {"num_layers": 576, "hidden_size": 32, "seq_length": 2048, "attention": "fused", "dropout_p": 0}


@pytest.mark.parametrize(
    ("config", "plan", "names"),
    [
        (config_of(), None, ALL_OF_THEM),
        (config_of(num_layers=1), None, ALL_OF_THEM),
        (config_of(attention="fused"), None, ["selective", "all", "full"]),
        (config_of(dropout_p=0), None, ["core_attn dropout", "all", "full"]),
        (config_of({"mode": "selective", "layers": "0-3"}), None, ALL_OF_THEM),
        (config_of({"mode": "selective", "modules": ["gelu"]}), None, ALL_OF_THEM),
        (config_of({"mode": "selective", "modules": "all"}), None, ["full"]),
        (config_of({"mode": "full", "method": "block", "num_layers": 11}), None, ["full"]),
        (config_of({"mode": "full", "num_layers": 6}), None, []),
        (config_of({"mode": "full"}), None, []),  # sqrt keeps less, with a higher peak
        (config_of(**DEEP), None, ["all", "full", "full sqrt"]),
        (config_of({"mode": "auto"}), no_recompute(12, mode="auto"), ALL_OF_THEM),
        (config_of({"mode": "auto"}), MIXED, ["core_attn dropout", "all", "full"]),
    ],
)
def test_each_next_mode_keeps_less_and_has_no_higher_peak(config, plan, names):
    assert ladder(failed_with(config, plan)) == names


@pytest.mark.parametrize("model", [{}, {"attention": "fused"}, {"dropout_p": 0}])
def test_choices_have_the_bytes_of_the_theory(model):
    config = config_of(micro=4, **model)
    shape = LayerShape.of(config, BF16_BYTES)
    plans = {name: make_plan(settings, 12) for name, settings in PRESETS.items()}
    assert [(choice.name, choice.plan, choice.saved, choice.peak) for choice in failed_with(config).presets()] == [
        (name, plan, saved_bytes(shape, plan), predicted_peak(shape, plan, micro_batches=4, on_gpu=True).bytes)
        for name, plan in plans.items()
    ]


def test_what_fits_has_a_peak_within_the_budget_and_below_that_of_what_ran_out():
    failed = failed_with(config_of({"mode": "selective", "modules": ["core_attn", "dropout"]}))
    peaks = {choice.name: choice.peak for choice in failed.presets()}
    assert [choice.name for choice in failed.fitting(2**40)] == ["all", "full", "full sqrt"]
    assert [choice.name for choice in failed.fitting(peaks["all"])] == ["all", "full", "full sqrt"]
    assert [choice.name for choice in failed.fitting(peaks["all"] - 1)] == ["full", "full sqrt"]
    assert failed.fitting(min(peaks.values()) - 1) == []


def test_a_smaller_micro_batch_divides_the_global_batch_and_is_the_largest_that_fits():
    config = config_of(micro=12, total=24)
    failed, plan = failed_with(config), no_recompute(12)

    def peak(batch):
        shape = LayerShape.of(config, BF16_BYTES, batch)
        return predicted_peak(shape, plan, micro_batches=24 // batch, on_gpu=True).bytes

    assert failed.smaller_micro_batch(plan, 2**40) == (8, peak(8))
    assert failed.smaller_micro_batch(plan, peak(8) - 1) == (6, peak(6))
    assert failed.smaller_micro_batch(plan, peak(1)) == (1, peak(1))
    assert failed.smaller_micro_batch(plan, peak(1) - 1) is None


@pytest.mark.parametrize("name", PRESETS)
def test_the_flags_of_a_setting_ask_for_it(name):
    assert parse_train_args(setting_flags(PRESETS[name]).split()).config.recompute == PRESETS[name]
