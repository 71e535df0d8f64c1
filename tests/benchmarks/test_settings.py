"""The light config equals the schema's, field by field."""

import dataclasses

import pytest

from benchmarks.settings import CONFIGS, RECOMPUTE, Setting, read_config
from megaselect.errors import ConfigError

pytest.importorskip("pydantic", reason="the schema needs it, the benchmarks do not")
from megaselect.config import Config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file(path):
    light, full = read_config(path.stem), Config.from_yaml(path)
    for section in ("model", "training"):
        fields = dataclasses.asdict(getattr(light, section))
        assert fields == {name: getattr(getattr(full, section), name) for name in fields}
    assert light.model.padded_vocab_size == full.model.padded_vocab_size
    assert set(dataclasses.asdict(light.model)) == set(type(full.model).model_fields)


@pytest.mark.parametrize("name", RECOMPUTE)
def test_recompute_settings(name):
    light = RECOMPUTE[name]
    given = {"recompute.mode": light.mode}
    if light.mode == "selective":
        given["recompute.modules"] = "all" if name == "all" else list(light.modules)
    full = Config.from_yaml(CONFIGS / "tiny.yaml", given).recompute
    fields = dataclasses.asdict(light)
    assert fields == {field: getattr(full, field) for field in fields}
    assert light.selected_layers(4) == full.selected_layers(4)


def test_a_setting_changes_attention_and_recompute_alone():
    config = read_config("tiny", {"model.dropout_p": 0.2})
    chosen = config.of(Setting("sdpa", "full", compiled=True))
    assert (chosen.model.attention, chosen.recompute.mode, chosen.training.compile) == ("sdpa", "full", True)
    assert (chosen.model.attention_dropout_p, chosen.model.hidden_dropout_p) == (0, 0.2)
    assert config.of(Setting("unfused", "none")) == config


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown setting model\.hiden_size"):
        read_config("tiny", {"model.hiden_size": 1})
    path = tmp_path / "wrong.yaml"
    path.write_text("model: {num_layers: 1, hiden_size: 2}")
    with pytest.raises(ConfigError, match="hiden_size"):
        read_config(str(path))
