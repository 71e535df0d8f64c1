"""Saving beside the steps: what is written is the state that was handed over, and a save that fails costs no other."""

import contextlib
import os
import shutil
import threading

import pytest
from small_disks import file_size_limit, mounted, remount
from tiny_checkpoints import FILES, Tiny, flip, names, same, states, tiny_config

from megaselect.errors import CheckpointError
from megaselect.training.checkpoint import find_checkpoint, newest_checkpoint
from megaselect.training.checkpoint_files import OPTIMIZER, checkpoint_path, open_checkpoint
from megaselect.training.state import RunState


@pytest.fixture
def notes():
    return []


def save_all(tiny, saver, *states, between=None):
    """Save after a step each, one after the other."""
    for number, state in enumerate(states):
        tiny.train()
        saver.save(tiny.optimizer, state, tiny.config)
        saver.wait()
        if between:
            between(number)


def test_what_is_written_is_the_state_that_was_handed_over(tmp_path, notes):
    """The thread is held up until the next step has changed every tensor."""
    trained, stepped = Tiny().train(3), threading.Event()
    expected = trained.tensors()
    with trained.saver(tmp_path, notes, sync=lambda: stepped.wait(600)) as saver:
        saver.save(trained.optimizer, RunState(3, 12), trained.config)
        assert "step-00000003" not in names(tmp_path)
        trained.train()
        stepped.set()
    state, tensors = Tiny(seed=1).load(checkpoint_path(tmp_path, 3))
    assert state == RunState(3, 12)
    assert same(tensors, expected)
    assert not any(tensor.equal(trained.tensors()[name]) for name, tensor in expected.items())


def test_a_save_waits_for_the_one_before(tmp_path, notes):
    """Else the second one would be copied into what the thread still reads."""
    trained, release = Tiny(), threading.Event()
    with trained.saver(tmp_path, notes, sync=lambda: release.wait(600)) as saver:
        saver.save(trained.train().optimizer, RunState(1, 4), trained.config)
        first = trained.tensors()
        second = threading.Thread(target=saver.save, args=(trained.train().optimizer, RunState(2, 8), trained.config))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        release.set()
        second.join(600)
    assert same(Tiny(seed=1).load(checkpoint_path(tmp_path, 1))[1], first)
    assert same(Tiny(seed=1).load(checkpoint_path(tmp_path, 2))[1], trained.tensors())


def test_metrics_are_on_disk_before_the_checkpoint_has_its_name(tmp_path, notes):
    seen, trained = [], Tiny()
    with trained.saver(tmp_path, notes, sync=lambda: seen.append(names(tmp_path))) as saver:
        save_all(trained, saver, *states(1, 2))
    assert seen == [[".step-00000001.partial"], [".step-00000002.partial", "step-00000001"]]


def test_metrics_that_cannot_be_brought_to_disk_hold_the_checkpoint_back(tmp_path, notes):
    def refuse():
        raise OSError(28, "No space left on device")

    trained = Tiny()
    with (
        pytest.raises(CheckpointError, match="No space left on device"),
        trained.saver(tmp_path, notes, refuse) as saver,
    ):
        save_all(trained, saver, RunState(1, 4))
    assert names(tmp_path) == []


@pytest.mark.parametrize(("keep", "kept"), [(1, [5]), (2, [4, 5]), (3, [3, 4, 5])])
def test_the_newest_are_kept(tmp_path, notes, keep, kept):
    trained = Tiny(config=tiny_config(keep_checkpoints=keep))
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, *states(1, 2, 3, 4, 5))
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]
    assert notes == []


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_is_kept_and_can_be_named(tmp_path, notes, keep_best):
    trained = Tiny(config=tiny_config(keep_checkpoints=1, keep_best=keep_best))
    bests = [1, 1, 3, 3, 3]
    seen = []
    with trained.saver(tmp_path, notes) as saver:
        every = [RunState(step, 4 * step, best_step=best) for step, best in enumerate(bests, 1)]
        save_all(trained, saver, *every, between=lambda _: seen.append(names(tmp_path)))
    if not keep_best:
        assert seen == [[f"step-{step:08d}"] for step in range(1, 6)]
        return
    expected = [[1], [1, 2], [3], [3, 4], [3, 5]]
    assert seen == [["best", *(f"step-{step:08d}" for step in steps)] for steps in expected]
    assert find_checkpoint(str(tmp_path / "checkpoints" / "best"), tmp_path / "new").checkpoint.saved.state == every[2]
    assert newest_checkpoint(tmp_path).checkpoint.saved.state == every[4]


def test_damaged_ones_are_neither_counted_nor_removed_until_their_step_is_saved_again(tmp_path, notes):
    trained = Tiny()
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, *states(4, 8))
    damaged = checkpoint_path(tmp_path, 8)
    flip(damaged / OPTIMIZER)
    seen = []
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, *states(6, 7, 8), between=lambda _: seen.append(names(tmp_path)))
    assert seen == [[f"step-{step:08d}" for step in steps] for steps in ([4, 6, 8], [6, 7, 8], [7, 8])]
    assert open_checkpoint(damaged).saved.state == RunState(8, 32)
    assert notes == []


def test_whole_ones_ahead_of_a_run_that_went_back_are_removed(tmp_path, notes):
    trained = Tiny(config=tiny_config(keep_checkpoints=5))
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, *states(2, 4, 6))
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, *states(3))
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def assert_goes_on(trained, run_dir, notes, reason, spoil, mend):
    """The second save fails and says so once; the first stays whole, nothing half-written stays, the third succeeds."""
    with trained.saver(run_dir, notes) as saver:
        save_all(trained, saver, RunState(1, 4))
        before = trained.tensors()
        spoil()
        save_all(trained, saver, RunState(2, 8))
        assert len(notes) == 1
        assert "step-00000002" in notes[0]
        assert reason in notes[0]
        assert "tries again at its next save" in notes[0]
        mend()
        if (run_dir / "checkpoints" / "step-00000001").exists():
            assert "step-00000001 is whole" in notes[0]
            assert names(run_dir) == ["step-00000001"]
            assert same(Tiny(seed=1).load(checkpoint_path(run_dir, 1))[1], before)
        save_all(trained, saver, RunState(3, 12))
    assert len(notes) == 1
    assert same(Tiny(seed=1).load(checkpoint_path(run_dir, 3))[1], trained.tensors())


def test_a_full_disk(tmp_path, notes):
    with mounted(tmp_path / "run" / "checkpoints", 64 * 1024) as disk:
        filler = disk / "filler"
        assert_goes_on(
            Tiny(), disk.parent, notes, "No space left on device", lambda: fill(filler), lambda: filler.unlink()
        )


def fill(path):
    """To the last byte."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_read_only_disk(tmp_path, notes):
    with mounted(tmp_path / "run" / "checkpoints", 10**6) as disk:
        assert_goes_on(
            Tiny(),
            disk.parent,
            notes,
            "Read-only file system",
            lambda: remount(disk, "ro"),
            lambda: remount(disk, "rw"),
        )


@pytest.mark.parametrize("name", FILES)
def test_a_quota(tmp_path, notes, name):
    """There is room for all but the last byte of one of the files."""
    trained = Tiny()
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, RunState(1, 4))
        with file_size_limit((checkpoint_path(tmp_path, 1) / name).stat().st_size - 1):
            save_all(trained, saver, RunState(2, 8))
        assert "File too large; step-00000001 is whole: raise the limit on a file's size; the run goes on" in notes[0]
        assert names(tmp_path) == ["step-00000001"]
        save_all(trained, saver, RunState(3, 12))
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    assert len(notes) == 1


def test_the_run_directory_is_removed(tmp_path, notes):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert_goes_on(
        Tiny(), run_dir, notes, "No such file or directory", lambda: shutil.rmtree(run_dir), lambda: run_dir.mkdir()
    )
    assert "make the run directory again" in notes[0]


def test_no_memory_for_the_copy(tmp_path, notes, monkeypatch):
    """As torch says it on a CPU."""

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    trained = Tiny()
    with trained.saver(tmp_path, notes) as saver:
        with monkeypatch.context() as patch:
            patch.setattr("megaselect.training.checkpoint_writer.torch.empty", refuse)
            save_all(trained, saver, RunState(1, 4))
        save_all(trained, saver, RunState(2, 8))
    assert len(notes) == 1
    assert "no host memory for a copy of the state; there is none before it: free some memory" in notes[0]
    assert names(tmp_path) == ["step-00000002"]


def test_an_old_checkpoint_that_cannot_be_removed_is_told(tmp_path, notes):
    """It is on a file system of its own, so that it cannot be renamed: the new one counts as saved all the same."""
    trained = Tiny(config=tiny_config(keep_checkpoints=1))
    with mounted(tmp_path / "checkpoints" / "step-00000001", 10**6) as old, trained.saver(tmp_path, notes) as saver:
        with trained.saver(tmp_path / "aside", notes) as other:
            (tmp_path / "aside").mkdir()
            save_all(trained, other, RunState(1, 4))
        shutil.copytree(checkpoint_path(tmp_path / "aside", 1), old, dirs_exist_ok=True)
        save_all(trained, saver, RunState(2, 8))
        assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert notes == [f"cannot remove an old checkpoint: Device or resource busy ({old})"]


def test_where_the_last_save_fails_the_run_ends_with_an_error(tmp_path, notes):
    with pytest.raises(CheckpointError) as error:
        save_where_the_second_fails(tmp_path, notes)
    home = checkpoint_path(tmp_path, 2)
    assert str(error.value) == (
        f"cannot write the checkpoint {home}: File too large; step-00000001 is whole: raise the limit on a file's "
        "size, then continue with --resume auto"
    )


def test_an_error_of_the_run_is_not_replaced(tmp_path, notes):
    with pytest.raises(KeyboardInterrupt):
        save_where_the_second_fails(tmp_path, notes, KeyboardInterrupt())
    assert len(notes) == 1


def save_where_the_second_fails(run_dir, notes, error=None):
    """Two saves; then the run ends with the error."""
    trained = Tiny()
    with trained.saver(run_dir, notes) as saver:
        save_all(trained, saver, RunState(1, 4))
        with file_size_limit(0):
            save_all(trained, saver, RunState(2, 8))
        if error:
            raise error


def test_without_links_the_best_is_still_kept(tmp_path, notes, monkeypatch):
    """As on FAT."""

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    trained = Tiny(config=tiny_config(keep_checkpoints=1))
    with trained.saver(tmp_path, notes) as saver:
        save_all(trained, saver, *(RunState(step, 4 * step, best_step=1) for step in (1, 2, 3)))
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    assert notes == []
