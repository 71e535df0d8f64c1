"""Sizes and settings change in a config what they name, and nothing else."""

from typing import get_args

import pytest

from benchmarks.configs import read_config, under
from benchmarks.settings import ATTENTIONS, RECOMPUTE, BenchmarkSetting
from megaselect.config import Config, ModelConfig
from megaselect.errors import ConfigError

OVERRIDES = {"model.dropout_p": 0.2, "recompute.mode": "full", "recompute.method": "block", "recompute.num_layers": 1}


def differences(one: Config, other: Config) -> set[str]:
    """Dotted names of the settings that the two do not share."""
    first, second = one.model_dump(), other.model_dump()
    return {
        f"{section}.{name}"
        for section, values in first.items()
        for name, value in values.items()
        if value != second[section][name]
    }


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_setting_changes_attention_recompute_and_compiling_alone(attention, recompute):
    config = read_config("tiny", OVERRIDES).config
    chosen = under(config, BenchmarkSetting(attention, recompute, compiled=True))
    assert differences(chosen, config) <= {
        "model.attention", "model.attention_dropout_p", "training.compile",
        "recompute.mode", "recompute.modules", "recompute.method", "recompute.num_layers",
    }  # fmt: skip
    section = RECOMPUTE[recompute]
    assert chosen.recompute == Config.from_dict({"model": config.to_dict()["model"], "recompute": section}).recompute
    assert chosen.recompute.mode == section["mode"]
    assert (chosen.model.attention, chosen.training.compile) == (attention, True)
    assert chosen.model.attention_dropout_p == (0.0 if attention == "sdpa" else 0.2)
    assert chosen.model.hidden_dropout_p == 0.2


def test_every_attention_of_the_schema_is_compared():
    assert get_args(ModelConfig.model_fields["attention"].annotation) == ATTENTIONS


def test_other_sizes():
    named = read_config("gpt-1.3b")
    other = named.sized(512, 3)
    assert (other.name, other.own_length) == ("gpt-1.3b", 2048)
    assert (other.config.model.seq_length, other.config.training.micro_batch_size) == (512, 3)
    changed = {"model.seq_length", "training.micro_batch_size", "training.global_batch_size"}
    assert differences(other.config, named.config) == changed
    assert differences(named.sized(512).config, named.config) == {"model.seq_length"}
    assert named.sized() == named


def test_what_the_schema_refuses_is_refused():
    with pytest.raises(ConfigError, match=r"hiden_size"):
        read_config("tiny", {"model.hiden_size": 1})
