"""Where full recomputation puts its checkpoints, and settings that would save nothing are refused."""

import re

import pytest
from recompute_settings import SETTINGS, full, selective
from tiny_models import MODEL, build_unchecked, make_batch, make_config

from megaselect import build_model
from megaselect.config import RecomputeConfig
from megaselect.errors import ConfigError, RecomputeError
from megaselect.ledger import record
from megaselect.recomputation.plan import Chunk, make_plan

NO_DROPOUT = {"dropout_p": 0.0}


def plan(recompute, num_layers):
    return make_plan(RecomputeConfig(**recompute), num_layers)


def drawn(recompute, num_layers):
    """Chunks as text: [0] for a checkpointed layer, [0-2] for a checkpointed chunk, 3 for a plain layer."""
    chunks = plan(recompute, num_layers).chunks
    numbers = [chunk.name.removeprefix("layers.") for chunk in chunks]
    return " ".join(f"[{n}]" if chunk.checkpointed else n for n, chunk in zip(numbers, chunks, strict=True))


@pytest.mark.parametrize(
    ("recompute", "num_layers", "expected"),
    [
        ({}, 3, "0 1 2"),
        (selective("core_attn"), 3, "0 1 2"),
        (full(), 3, "[0] [1] [2]"),
        (full(num_layers=2), 4, "[0-1] [2-3]"),
        (full(num_layers=2), 5, "[0-1] [2-3] [4]"),
        (full(num_layers=3), 5, "[0-2] [3-4]"),
        (full(num_layers=5), 5, "[0-4]"),
        (full("block", num_layers=1), 3, "[0] 1 2"),
        (full("block", num_layers=2), 4, "[0] [1] 2 3"),
        (full("block", num_layers=3), 3, "[0] [1] [2]"),
        (full("sqrt"), 1, "[0]"),
        (full("sqrt"), 2, "[0] [1]"),
        (full("sqrt"), 4, "[0-1] [2-3]"),
        (full("sqrt"), 9, "[0-2] [3-5] [6-8]"),
        (full("sqrt"), 12, "[0-2] [3-5] [6-8] [9-11]"),
        (full(layers="even"), 5, "[0] 1 [2] 3 [4]"),
        (full(layers="odd"), 5, "0 [1] 2 [3] 4"),
        (full(layers="skip-first-last"), 5, "0 [1] [2] [3] 4"),
        (full(num_layers=2, layers="skip-first-last"), 6, "0 [1-2] [3-4] 5"),
        (full(num_layers=2, layers="1-3,5"), 7, "0 [1-2] [3] 4 [5] 6"),
        (full(num_layers=2, layers="even"), 4, "[0] 1 [2] 3"),
        (full("block", num_layers=2, layers="odd"), 6, "0 [1] 2 [3] 4 5"),
        (full("sqrt", layers="2-7"), 9, "0 1 [2-4] [5-7] 8"),
    ],
    ids=str,
)
def test_chunks(recompute, num_layers, expected):
    assert drawn(recompute, num_layers) == expected


def test_a_chunk_has_the_name_that_the_ledger_shows():
    assert [chunk.name for chunk in plan(full(num_layers=3), 4).chunks] == ["layers.0-2", "layers.3"]
    assert plan(full(num_layers=3), 4).chunks[0] == Chunk(0, 3, True)


def test_modules_are_planned_for_the_chosen_layers_only():
    chosen, nothing = frozenset({"softmax", "dropout"}), frozenset()
    assert plan({"mode": "selective"}, 3).modules == (chosen,) * 3
    assert plan(selective("softmax", "dropout", layers="1"), 3).modules == (nothing, chosen, nothing)
    assert plan({}, 2).modules == plan(full(), 2).modules == (nothing, nothing)


def test_the_embedding_mask_is_rebuilt_where_dropout_is():
    recomputed = {name for name, recompute in SETTINGS.items() if plan(recompute, 4).recompute_embedding_mask}
    full_names = {name for name, recompute in SETTINGS.items() if recompute.get("mode") == "full"}
    assert recomputed == full_names | {name for name in SETTINGS if "dropout" in name or name == "all"}


@pytest.mark.parametrize("method", ["uniform", "block"])
def test_more_layers_than_the_model_has_are_refused(method):
    text = re.escape("recompute.num_layers = 4 exceeds model.num_layers = 3: use at most 3")
    with pytest.raises(RecomputeError, match=text):
        plan(full(method, num_layers=4), 3)
    assert plan(full(method, num_layers=3), 3).chunks


@pytest.mark.parametrize("layers", ["3", "2-5"])
def test_layers_that_the_model_does_not_have_are_refused(layers):
    with pytest.raises(ConfigError, match="but the model has layers 0-2"):
        plan(full(layers=layers), 3)


WOULD_SAVE_NOTHING = "would save nothing"
TINY_HEADS = {"hidden_size": 12, "num_attention_heads": 6, "attention_dropout_p": 0.0}  # d = 2: statistics weigh more


@pytest.mark.parametrize(
    ("recompute", "model"),
    [
        (selective("softmax", "dropout"), NO_DROPOUT),
        (selective("dropout"), NO_DROPOUT),
        (selective("softmax"), NO_DROPOUT),
        (selective("softmax"), {"attention_dropout_p": 0.0}),
        (selective("softmax", "dropout", layers="1-2"), NO_DROPOUT),
        (selective("softmax", "dropout"), TINY_HEADS),
        (selective("softmax"), {"seq_length": 2}),
    ],
    ids=str,
)
def test_settings_that_save_nothing_are_refused(recompute, model):
    config = make_config(recompute, dtype="bf16", **model)
    with pytest.raises(RecomputeError, match=WOULD_SAVE_NOTHING) as refused:
        build_model(config)
    assert f"recompute selective with modules {' '.join(recompute['modules'])}" in str(refused.value)
    assert total(config) >= total(make_config(dtype="bf16", **model))  # and it is true


@pytest.mark.parametrize(
    ("recompute", "model"),
    [
        *((recompute, {}) for recompute in SETTINGS.values()),
        (selective("core_attn"), NO_DROPOUT),
        (selective("softmax", "core_attn"), NO_DROPOUT),
        (selective("dropout"), {"attention_dropout_p": 0.0}),
        (selective("dropout"), {"hidden_dropout_p": 0.0}),
        (selective("softmax", "dropout"), {"attention_dropout_p": 0.0}),
        (selective("softmax"), {"hidden_dropout_p": 0.0}),
        (selective("softmax", "dropout"), {**TINY_HEADS, "hidden_size": 24}),
        (full(), NO_DROPOUT),
        (full("block", num_layers=1), NO_DROPOUT),
    ],
    ids=str,
)
def test_settings_that_save_are_not_refused(recompute, model):
    config = make_config(recompute, dtype="bf16", **model)
    build_model(config)
    if recompute:
        assert total(config) < total(make_config(dtype="bf16", **model))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("seq_length", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", ["softmax", "softmax dropout"])
def test_a_setting_is_refused_exactly_where_the_ledger_finds_nothing_saved(name, seq_length, dtype):
    model = {"seq_length": seq_length, "hidden_dropout_p": 0.0, "num_layers": 4}
    config = make_config(SETTINGS[name], dtype=dtype, **model)
    if total(config) < total(make_config(dtype=dtype, **model)):
        build_model(config)
        return
    with pytest.raises(RecomputeError, match=WOULD_SAVE_NOTHING):
        build_model(config)


def test_the_reason_is_the_right_one():
    with pytest.raises(RecomputeError) as without_dropout:
        build_model(make_config(selective("softmax", "dropout"), **NO_DROPOUT))
    assert "dropout_p is 0, so there are no masks, and scores would be kept in place of probs" in str(
        without_dropout.value
    )
    with pytest.raises(RecomputeError) as masks_alone:
        build_model(make_config(selective("dropout"), **NO_DROPOUT))
    assert "there are no masks" in str(masks_alone.value)
    assert "scores" not in str(masks_alone.value)  # these modules keep probs as they are
    with pytest.raises(RecomputeError) as tiny_heads:
        build_model(make_config(selective("softmax", "dropout"), dtype="bf16", **TINY_HEADS))
    more = total(make_config(selective("softmax", "dropout"), dtype="bf16", **TINY_HEADS))
    less = total(make_config(dtype="bf16", **TINY_HEADS))
    assert more > less
    assert f"it keeps {more - less} bytes more than none in a micro-batch" in str(tiny_heads.value)
    assert "--recompute full or --recompute-modules all" in str(tiny_heads.value)


def total(config):
    with record(model := build_unchecked(config)) as ledger:
        model(*make_batch(config))
    return ledger.total


def test_the_default_of_selective_is_softmax_and_dropout():
    config = make_config({"mode": "selective"})
    assert total(config) == total(make_config(selective("softmax", "dropout")))
    assert set(config.recompute.modules) == {"softmax", "dropout"}
    assert MODEL["dropout_p"] > 0
