"""A checkpoint on disk: what it holds, how it tells damage, which one a run takes."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import FILES, Tiny, flip, names, reseal, same, states

from megaselect.errors import CheckpointError
from megaselect.training.checkpoint import find_checkpoint, newest_checkpoint
from megaselect.training.checkpoint_files import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    open_checkpoint,
    remove_leftovers,
    sha256_of,
)
from megaselect.training.state import RunState

STATE_OF_ALL = RunState(7, 28, 2, 3.25, 5, {"wandb_id": "abc", "série": "é"})


@pytest.fixture
def home(tmp_path):
    return Tiny().train(3).write(tmp_path, STATE_OF_ALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_is_what_is_loaded(tmp_path, dtype):
    trained = Tiny(dtype=dtype).train(3)
    path = trained.write(tmp_path, STATE_OF_ALL)
    state, tensors = Tiny(seed=1, dtype=dtype).load(path)
    assert state == STATE_OF_ALL
    assert same(tensors, trained.tensors())
    again = Tiny(seed=1, dtype=dtype)
    again.load(path)
    assert again.optimizer.scalars() == trained.optimizer.scalars()
    assert same(again.train(2).tensors(), trained.train(2).tensors())


def test_the_manifest_says_what_the_files_hold(home):
    manifest = json.loads((home / MANIFEST).read_text())
    assert sorted(path.name for path in home.iterdir()) == sorted(FILES)
    for name in (MODEL, OPTIMIZER, STATE):
        assert manifest["files"][name]["bytes"] == (home / name).stat().st_size
        assert manifest["files"][name]["sha256"] == sha256_of(home / name)
    for name in (MODEL, OPTIMIZER):
        held = {name: {"dtype": "F32", "shape": list(each.shape)} for name, each in load_file(home / name).items()}
        assert manifest["files"][name]["tensors"] == held
    assert open_checkpoint(home).saved.config == Tiny().config.to_dict()


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_noticed(home, name):
    content = (home / name).read_bytes()
    places = range(0, len(content), max(1, len(content) // 20))
    for place in places:
        flip(home / name, place)
        if name != MANIFEST or json_of(home / name) != json.loads(content):
            with pytest.raises(CheckpointError, match=f"{home} is damaged .*{name}"):
                open_checkpoint(home)
        (home / name).write_bytes(content)
    open_checkpoint(home)


def json_of(path):
    """None where it is none; white space in it may change unnoticed."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _cut(name):
    return lambda home: os.truncate(home / name, (home / name).stat().st_size - 2)


def _remove(name):
    return lambda home: (home / name).unlink()


def _directory(name):
    return lambda home: ((home / name).unlink(), (home / name).mkdir())


def _fifo(name):
    return lambda home: ((home / name).unlink(), os.mkfifo(home / name))


DAMAGES = {
    **{
        f"{name} cut off": (_cut(name), "bytes, manifest.json says" if name != MANIFEST else "does not read")
        for name in FILES
    },
    **{f"{name} missing": (_remove(name), f"{name} is missing") for name in FILES},
    **{f"{name} a directory": (_directory(name), f"{name} is not a file") for name in FILES},
    **{f"{name} a pipe": (_fifo(name), f"{name} is not a file") for name in FILES},
    "manifest empty": (lambda home: (home / MANIFEST).write_bytes(b""), f"{MANIFEST} does not read"),
    "model is the optimizer's": (
        lambda home: shutil.copy(home / OPTIMIZER, home / MODEL),
        f"{MODEL} has",
    ),
    "another checkpoint's manifest": (
        lambda home: shutil.copy(
            Tiny(seed=2).train(1).write(home.parent.parent / "other", RunState(7, 28)) / MANIFEST, home / MANIFEST
        ),
        "",
    ),
    "format 1": (
        lambda home: ((home / MANIFEST).unlink(), (home / STATE).write_text('{\n "format_version": 1,\n "step": 4}')),
        "it is in format 1, this version reads format 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_in_one_line(home, damage):
    (home.parent.parent / "other").mkdir()
    spoil, reason = DAMAGES[damage]
    spoil(home)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(home)
    assert str(error.value).startswith(f"checkpoint {home} is damaged (")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def _forge(name, old, new):
    def forge(home):
        content = (home / name).read_bytes()
        assert old in content
        (home / name).write_bytes(content.replace(old, new, 1))
        reseal(home)

    return forge


FORGERIES = {
    "huge header": lambda home: (
        (home / MODEL).write_bytes((2**62).to_bytes(8, "little") + (home / MODEL).read_bytes()[8:]),
        reseal(home),
    ),
    "huge shape": _forge(MODEL, b'"shape":[2,4]', b'"shape":[99999999999999,4]'),
    "another dtype": _forge(MODEL, b'"F32"', b'"I32"'),
    "another name": _forge(OPTIMIZER, b'"step.bias"', b'"step.bios"'),
    "other tensors than the manifest's": lambda home: (
        save_file({"weight": torch.ones(2, 4), "bias": torch.ones(3)}, home / MODEL),
        reseal(home, keep_tensors=True),
    ),
    "negative step": _forge(STATE, b'"step": 7', b'"step": -7'),
    "a step that no file name holds": _forge(STATE, b'"step": 7', b'"step": 7' + b"0" * 5000),
    "a step in words": _forge(STATE, b'"step": 7', b'"step": "7"'),
    "an unknown key": _forge(STATE, b'"step": 7', b'"stop": 1, "step": 7'),
    "no state": _forge(STATE, b'"state"', b'"estate"'),
    "deep JSON": lambda home: ((home / STATE).write_bytes(b"[" * 200_000), reseal(home)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_checkpoint_is_refused_in_one_line(home, forgery):
    """Its checksums fit, so that what is behind them is reached."""
    FORGERIES[forgery](home)
    with pytest.raises(CheckpointError) as error:
        Tiny().load(home)
    assert str(home) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    trained = Tiny()
    paths = [trained.train().write(tmp_path, state) for state in states(4, 8, 99_999_999, 100_000_000)]
    assert newest_checkpoint(tmp_path).checkpoint.path == paths[3]  # by number, not by letters
    flip(paths[3] / OPTIMIZER)
    (paths[2] / STATE).unlink()
    found = find_checkpoint("auto", tmp_path)
    assert found.checkpoint.path == paths[1]
    assert found.checkpoint.saved.state == RunState(8, 32)
    assert len(found.notes) == 2
    assert (
        "optimizer.safetensors: its bytes have changed, by their SHA-256): step-00000008 is taken; " in found.notes[0]
    )
    assert "step-100000000 is damaged" in found.notes[0]
    assert "step-99999999 is damaged (state.json is missing): step-00000008 is taken; " in found.notes[1]
    assert find_checkpoint(str(tmp_path), tmp_path).checkpoint.path == paths[1]
    assert all(path.exists() for path in paths)


def test_where_all_are_damaged_each_is_listed(tmp_path):
    for path in [Tiny().write(tmp_path, state) for state in states(4, 8)]:
        flip(path / MODEL)
    for resume in ("auto", str(tmp_path)):
        with pytest.raises(CheckpointError, match=r"every checkpoint .*\(step-00000008: model.*; step-00000004: model"):
            find_checkpoint(resume, tmp_path)


def test_a_path_to_a_damaged_checkpoint_is_not_another_one(tmp_path):
    Tiny().write(tmp_path, RunState(4, 16))
    damaged = Tiny().write(tmp_path, RunState(8, 32))
    (damaged / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="step-00000008 is damaged"):
        find_checkpoint(str(damaged), tmp_path)


def test_another_runs_checkpoint_does_not_overwrite_a_run(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Tiny().write(tmp_path / name, RunState(4, 16))
    with pytest.raises(CheckpointError, match=r"two already holds a run .* would overwrite it"):
        find_checkpoint(str(tmp_path / "one"), tmp_path / "two")
    assert find_checkpoint(str(tmp_path / "one"), tmp_path / "new").checkpoint is not None


def test_a_checkpoint_under_another_name_can_be_given(home, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(home, kept)
    assert find_checkpoint(str(kept), tmp_path / "new").checkpoint.saved.state == STATE_OF_ALL
    (kept / MODEL).unlink()
    with pytest.raises(CheckpointError, match=r"kept is damaged \(model\.safetensors is missing\)"):
        find_checkpoint(str(kept), tmp_path / "new")


def test_what_a_kill_left_is_removed_at_the_start(tmp_path):
    home = Tiny().write(tmp_path, RunState(4, 16))
    for name in (".step-00000008.partial", ".step-00000002.removed"):
        shutil.copytree(home, home.with_name(name))
    home.with_name(".best.partial").symlink_to("step-00000004")
    assert find_checkpoint("auto", tmp_path).checkpoint.path == home
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000004"]
