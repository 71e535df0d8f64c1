import pytest
from measurements import CONFIG

from megaselect.comparison.settings import DEFAULT_SETTINGS, make_rows
from megaselect.config import Config
from megaselect.errors import ComparisonError
from megaselect.recompute_modules import MODULES


def with_(**overrides):
    return Config.from_dict(
        CONFIG.to_dict(), overrides={name.replace("__", "."): value for name, value in overrides.items()}
    )


def names(config, *wanted):
    return [row.name for row in make_rows(config, wanted)]


def test_names_mean_attention_and_recompute_and_nothing_else_changes():
    rows = {row.name: row.config for row in make_rows(CONFIG, DEFAULT_SETTINGS)}
    assert list(rows) == list(DEFAULT_SETTINGS)
    found = {
        name: (config.model.attention, config.recompute.mode, set(config.recompute.modules))
        for name, config in rows.items()
    }
    default, unset = {"softmax", "dropout"}, {"softmax", "dropout"}
    assert found == {
        "none": ("unfused", "none", unset),
        "selective": ("unfused", "selective", default),
        "core_attn dropout": ("unfused", "selective", {"core_attn", "dropout"}),
        "all": ("unfused", "selective", set(MODULES)),
        "full": ("unfused", "full", unset),
        "fused none": ("fused", "none", unset),
        "fused all": ("fused", "selective", set(MODULES)),
        "sdpa none": ("sdpa", "none", unset),
    }
    for config in rows.values():
        assert (config.training, config.data) == (CONFIG.training, CONFIG.data)


def test_a_name_without_attention_means_the_configs_own():
    assert names(with_(model__attention="fused"), "all", "unfused full") == ["fused none", "fused all", "none", "full"]


def test_none_of_an_attention_comes_before_its_settings_once():
    assert names(CONFIG, "fused all", "full", "fused none", "none", "full") == [
        "fused none",
        "fused all",
        "none",
        "full",
    ]


def test_the_configs_own_setting_joins_unless_it_is_there():
    assert names(with_(recompute__mode="full", recompute__method="sqrt"), "all") == ["none", "all", "full sqrt"]
    same = with_(recompute__mode="selective", recompute__modules=["dropout", "softmax"])
    assert names(same, "selective") == ["none", "selective"]
    planned = make_rows(with_(recompute__mode="auto", recompute__memory="1GiB"), ["auto", "full"])
    assert [(row.name, row.config.recompute.memory) for row in planned] == [
        ("none", None),
        ("auto", "1GiB"),
        ("full", None),
    ]


def test_sdpa_runs_without_attention_dropout_and_says_so():
    *_, sdpa = make_rows(CONFIG, ["sdpa none"])
    assert (sdpa.config.model.attention_dropout_p, sdpa.config.model.hidden_dropout_p) == (0.0, 0.1)
    assert sdpa.note == "without attention dropout (0.1 in the config): another training"
    *_, same = make_rows(with_(model__attention_dropout_p=0.0), ["sdpa none"])
    assert same.note is None


@pytest.mark.parametrize("name", ["sometimes", "fused", "all softmax", ""])
def test_a_name_that_means_nothing_is_an_error_with_the_known_ones(name):
    with pytest.raises(ComparisonError) as caught:
        make_rows(CONFIG, ["none", name])
    assert str(caught.value) == (
        f"--settings {name!r}: unknown setting; a setting is none, selective, all, full, full sqrt or auto, "
        "or names of modules (softmax, dropout, core_attn, layernorm, gelu), "
        "with unfused, fused or sdpa before it for another attention"
    )
