"""What may change between a checkpoint and the run that continues it."""

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import SHAPE, Tiny, reseal, tiny_config

from megaselect.config import Config, iter_settings
from megaselect.devices import resolve_placement
from megaselect.errors import CheckpointError
from megaselect.training.checkpoint_files import STATE, open_checkpoint
from megaselect.training.compatibility import changed_data, changed_settings
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState


def changes(checkpoint, config):
    return changed_settings(checkpoint, config, resolve_placement(config.training).dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    return open_checkpoint(Tiny().write(run_dir, RunState(4, 16)))


def changed(**overrides):
    """The config of the checkpoint with other values by dotted name, with __ for the dot."""
    overrides = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config.from_dict(tiny_config().to_dict(), "test", overrides)


def test_nothing_changed(saved):
    assert changes(saved, tiny_config()) == []
    assert changed_data(saved, tiny_config(), "data", saved.path.parents[1]) == []
    assert changes(None, tiny_config()) == []
    assert changed_data(None, tiny_config(), "data", Path("new")) == []


def test_every_differing_setting_that_makes_another_model_is_named(saved):
    config = changed(
        model__num_layers=3, model__hidden_size=64, model__vocab_size=300, training__seed=1, training__dtype="bf16"
    )
    with pytest.raises(CheckpointError) as error:
        changes(saved, config)
    assert (
        "is of another training (model.num_layers 2 -> 3, model.hidden_size 32 -> 64, "
        "model.ffn_hidden_size 128 -> 256, "
        "model.vocab_size 256 -> 300, training.seed 1234 -> 1, training.dtype fp32 -> bf16): use its values"
    ) in str(error.value)


def test_dtype_is_compared_as_it_was_resolved(saved):
    assert changes(saved, changed(training__dtype="fp32")) == []  # auto, on a CPU


def test_what_a_run_may_change_is_noted_in_one_line(saved):
    config = changed(
        training__lr=1e-4,
        training__schedule="linear",
        training__global_batch_size=16,
        training__micro_batch_size=4,
        training__max_steps=900,
        training__decay_steps=300,
        model__dropout_p=0.2,
    )
    assert changes(saved, config) == [
        "note: settings that differ from the checkpoint's: model.dropout_p 0.1 -> 0.2, "
        "model.attention_dropout_p 0.1 -> 0.2, "
        "model.hidden_dropout_p 0.1 -> 0.2, training.micro_batch_size 8 -> 4, training.global_batch_size 8 -> 16, "
        "training.max_steps 500 -> 900, training.lr 0.0003 -> 0.0001, training.schedule cosine -> linear, "
        "training.decay_steps none -> 300"
    ]


def test_what_cannot_change_a_loss_is_not_noted(saved):
    config = changed(
        recompute__mode="full",
        logging__log_interval=3,
        logging__wandb="disabled",
        training__save_interval=7,
        training__keep_checkpoints=9,
        training__run_dir="elsewhere",
        training__exit_after="1h",
        data__prefetch=0,
    )
    assert changes(saved, config) == []
    assert changed_data(saved, config, "data", saved.path.parents[1]) == []


def test_every_setting_has_its_place():
    """A new one is noted until somebody decides otherwise; a name that no setting has any more is an error here."""
    from megaselect.training import compatibility

    names = {name for name, _ in iter_settings()}
    named = {*compatibility.FIXED_SETTINGS, *compatibility.PLACES, *compatibility._SILENT_SETTINGS}
    assert named <= names


@pytest.mark.parametrize(
    ("change", "fingerprint", "listed"),
    [
        ({}, "other", "fingerprint data -> other"),
        ({"data__valid_prefix": "v"}, "data", "data.valid_prefix none -> v"),
        ({"data__prefix": "p"}, "other", "data.prefix none -> p, fingerprint data -> other"),
        ({"data__blend": ("0.5", "a", "0.5", "b")}, "other", "data.blend none -> 0.5 a 0.5 b, fingerprint"),
        (
            {"data__prefix": "p", "data__valid_fraction": 0.1},
            "other",
            "data.prefix none -> p, data.valid_fraction 0.05 -> 0.1, fingerprint data -> other",
        ),
    ],
)
def test_other_data_is_for_another_run_directory(saved, change, fingerprint, listed):
    config, run_dir = changed(**change), saved.path.parents[1]
    with pytest.raises(CheckpointError, match="was trained on other data") as error:
        changed_data(saved, config, fingerprint, run_dir)
    assert listed in str(error.value)
    assert f"--resume {run_dir} in another --run-dir" in str(error.value)
    [note] = changed_data(saved, config, fingerprint, run_dir / "other")
    assert note.startswith("note: other data than the checkpoint's: ")
    assert listed in note
    assert changes(saved, config) == []


def test_the_same_tokens_under_another_name_are_the_same_data(saved):
    [note] = changed_data(saved, changed(data__prefix="moved/tokens"), "data", saved.path.parents[1])
    assert note == "note: the same tokens as the checkpoint's, by other settings: data.prefix none -> moved/tokens"


@pytest.mark.parametrize(
    ("batches", "expected"),
    [(8, []), (2, ["note: settings that differ from the checkpoint's: training.eval_samples 16 -> 64"])],
)
def test_a_checkpoint_of_a_version_that_counted_batches_goes_on(tmp_path, batches, expected):
    """8 micro-batches of 8 are the 64 samples of the default. Another number would give the best loss other data."""
    path = Tiny().write(tmp_path, RunState(4, 16))
    state = json.loads((path / STATE).read_text())
    del state["config"]["training"]["eval_samples"]
    state["config"]["training"]["eval_batches"] = batches
    (path / STATE).write_text(json.dumps(state))
    reseal(path)
    assert changes(open_checkpoint(path), tiny_config()) == expected


def test_a_config_of_another_version_is_told(saved):
    config = saved.saved.config | {"model": SHAPE | {"num_experts": 8}}
    foreign = saved.__class__(saved.path, saved.manifest, saved.saved.model_copy(update={"config": config}))
    with pytest.raises(CheckpointError, match=r"does not fit this version \(.*model\.num_experts"):
        changes(foreign, tiny_config())


def test_another_models_tensors_are_refused_before_any_is_read(saved, tmp_path):
    """Where the config says nothing of it."""
    smaller = Tiny()
    smaller.model.bias = None
    smaller.optimizer = MixedPrecisionAdamW(smaller.model, smaller.config.training)
    with pytest.raises(CheckpointError, match=r"its model has bias as F32 \[2\], needed is nothing"):
        smaller.load(saved.path)
    with pytest.raises(CheckpointError, match=r"has bias as F32 \[2\], needed is BF16 \[2\]"):
        Tiny(dtype=torch.bfloat16).load(saved.path)
