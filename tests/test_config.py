"""The schema: defaults, precedence of overrides, and round trips."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megaselect
from megaselect.config import Config, iter_settings
from megaselect.errors import CallbackError, ConfigError, MegaselectError
from megaselect.kernels.dropout_mask import drop_threshold

ROOT = Path(__file__).parents[1]
SHAPE = {"num_layers": 4, "hidden_size": 192, "num_attention_heads": 6, "seq_length": 128, "vocab_size": 4096}
MODEL = "model: {num_layers: 4, hidden_size: 192, num_attention_heads: 6, seq_length: 128, vocab_size: 4096}\n"


def config_of(**sections) -> Config:
    return Config.from_dict({"model": SHAPE, **sections})


def test_what_none_means_is_filled_in_and_follows_later_overrides():
    config = config_of()
    model = config.model
    assert (model.ffn_hidden_size, model.attention_dropout_p, model.hidden_dropout_p) == (768, 0.1, 0.1)
    smaller = Config.from_dict(config.to_dict(), overrides={"model.hidden_size": 96, "model.dropout_p": 0}).model
    assert (smaller.ffn_hidden_size, smaller.attention_dropout_p, smaller.hidden_dropout_p) == (384, 0.0, 0.0)
    kept = Config.from_dict({"model": {**SHAPE, "ffn_hidden_size": 100, "hidden_dropout_p": 0}}).model
    assert (kept.ffn_hidden_size, kept.attention_dropout_p, kept.hidden_dropout_p) == (100, 0.1, 0.0)
    assert Config.from_dict({"model": {**SHAPE, "ffn_hidden_size": None}}) == config


def test_words_and_numbers_as_yaml_writes_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        MODEL + "recompute: {mode: off}\nlogging: {wandb: off}\ndata:\n"
        "training: {lr: 3e-4, resume: off, max_steps: 1_000, deterministic: no}\n"
    )
    config = Config.from_yaml(path)
    assert (config.recompute.mode, config.logging.wandb, config.training.resume) == ("none", "disabled", "none")
    assert (config.training.lr, config.training.max_steps, config.training.deterministic) == (3e-4, 1000, False)
    assert config.data == config_of().data
    assert config_of(recompute={"mode": "full", "layers": 2}).recompute.selected_layers(4) == (2,)


def test_merge_keys_may_be_overridden(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model:\n  <<: {num_layers: 1, " + MODEL.partition("{num_layers: 4, ")[2] + "  num_layers: 2\n")
    assert Config.from_yaml(path).model == Config.from_dict({"model": {**SHAPE, "num_layers": 2}}).model


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (None, (0, 1, 2, 3, 4, 5)),
        ("even", (0, 2, 4)),
        ("odd", (1, 3, 5)),
        ("skip-first-last", (1, 2, 3, 4)),
        ("0, 3,4-5,3", (0, 3, 4, 5)),
        ("0-5", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_selected_layers(layers, chosen):
    model = {**SHAPE, "num_layers": 6}
    config = Config.from_dict({"model": model, "recompute": {"mode": "full", "layers": layers}})
    assert config.recompute.selected_layers(6) == chosen


def test_overrides_win_and_errors_name_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(MODEL + "training: {lr: 1.0e-4}\n")
    config = Config.from_yaml(path, {"training.lr": "2e-3", "recompute.mode": "full"})
    assert (config.training.lr, config.recompute.mode) == (2e-3, "full")
    for overrides, message in (
        ({"training.lr": "high"}, "override training.lr high: must be a number"),
        ({"training.lrs": 1}, "override training.lrs: unknown key training.lrs; did you mean training.lr?"),
        ({"lr": 1}, "override lr: unknown key lr; did you mean training.lr?"),
        (
            {"training.min_lr": 1},
            f"override training.min_lr with {path}: training.min_lr (1.0) is more than training.lr (0.0001), "
            "which it decays from; lower min_lr",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            Config.from_yaml(path, overrides)
        assert str(caught.value) == message


BLOCK = {"mode": "full", "method": "block", "num_layers": 2, "layers": "0-2"}


@pytest.mark.parametrize(
    ("recompute", "overrides", "result"),
    [
        (BLOCK, {"mode": "none"}, {"mode": "none"}),
        (BLOCK, {"mode": "selective"}, {"mode": "selective", "modules": ["softmax", "dropout"], "layers": "0-2"}),
        (BLOCK, {"mode": "full"}, BLOCK),
        (BLOCK, {"method": "sqrt"}, {**BLOCK, "method": "sqrt", "num_layers": None}),
        (BLOCK, {"num_layers": 3}, {**BLOCK, "num_layers": 3}),
        (BLOCK, {"layers": None}, {**BLOCK, "layers": None}),
        (
            {"mode": "selective", "modules": ["dropout"]},
            {"mode": "full"},
            {"mode": "full", "method": "uniform", "num_layers": None, "layers": None},
        ),
    ],
)
def test_an_overridden_mode_drops_what_belongs_to_another(recompute, overrides, result):
    mapping = {"model": SHAPE, "recompute": recompute}
    config = Config.from_dict(mapping, overrides={f"recompute.{name}": value for name, value in overrides.items()})
    assert config.to_dict()["recompute"] == result


def test_configs_are_frozen_hashable_and_survive_pickle():
    config = config_of(recompute={"mode": "selective", "modules": ["dropout"]})
    with pytest.raises(ValueError, match="frozen"):
        config.training.lr = 1.0
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert hash(copy) == hash(config)
    assert copy.to_dict() == config.to_dict()


@settings(deadline=None)  # a busy machine is no mistake of the config
@given(
    recompute=st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {"mode": st.just("auto")}, optional={"memory": st.sampled_from(["24GiB", "1.5 MB", None])}
        ),
        st.fixed_dictionaries({"mode": st.just("selective")}, optional={"modules": st.just(["core_attn"])}),
        st.fixed_dictionaries(
            {"mode": st.just("full"), "method": st.sampled_from(["uniform", "block"]), "num_layers": st.integers(1, 4)},
            optional={"layers": st.sampled_from(["even", "odd", "1-2", 3, None])},
        ),
    ),
    lr=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**64 - 1),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    threshold=st.integers(0, 255),
    ffn=st.none() | st.integers(1, 10**6),
)
def test_round_trip(recompute, lr, seed, text, threshold, ffn, tmp_path_factory):
    config = Config.from_dict(
        {
            "model": {**SHAPE, "dropout_p": threshold / 256, "ffn_hidden_size": ffn},
            "training": {"lr": lr, "seed": seed, "run_dir": text},
            "recompute": recompute,
        }
    )
    assert Config.from_dict(config.to_dict()) == config
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = Config.from_yaml(path)
    assert again == config
    assert again.to_yaml() == config.to_yaml()


def test_dropout_is_accepted_exactly_where_the_masks_accept_it():
    for step in range(-8, 2072):
        probability = step / 2048
        try:
            drop_threshold(probability)
            accepted = True
        except ValueError:
            accepted = False
        try:
            config_of(model={**SHAPE, "dropout_p": probability})
            assert accepted, probability
        except ConfigError:
            assert not accepted, probability


def test_every_setting_says_what_it_is():
    for name, field in iter_settings():
        assert field.description, name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    assert Config.from_yaml(path).training.run_dir is None  # a new directory for every run


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("tiny", (4, 192, 6, 128, 4096)),
        ("gpt2-124m", (12, 768, 12, 1024, 50257)),
        ("gpt-350m", (24, 1024, 16, 1024, 50257)),
        ("gpt-760m", (24, 1536, 16, 2048, 50257)),
        ("gpt-1.3b", (24, 2048, 16, 2048, 50257)),
    ],
)
def test_shapes_of_shipped_configs(name, shape):
    model = Config.from_yaml(ROOT / "configs" / f"{name}.yaml").model
    assert shape == tuple(getattr(model, key) for key in SHAPE)


def test_a_shipped_config_is_read_by_its_name_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = Config.from_yaml("tiny", {"training.max_steps": 3})
    assert named == Config.from_yaml(ROOT / "configs/tiny.yaml", {"training.max_steps": 3})
    Path("tiny").write_text(MODEL)
    assert Config.from_yaml("tiny") == Config.from_yaml(Path("tiny")) == config_of()


def test_the_names_are_the_packages():
    assert {"train", "Callback"} <= set(megaselect.__all__) <= set(dir(megaselect))
    assert issubclass(CallbackError, MegaselectError)


def test_importing_the_package_and_its_config_needs_no_torch():
    code = (
        "import sys, megaselect; print(sorted({'torch', 'pydantic'} & set(sys.modules)));"
        "from megaselect import Config; print(Config.__module__, sorted({'torch', 'triton'} & set(sys.modules)));"
        "print(megaselect.nonsense)"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.stdout == "[]\nmegaselect.config.schema []\n"
    assert child.stderr.endswith("AttributeError: module 'megaselect' has no attribute 'nonsense'\n")
