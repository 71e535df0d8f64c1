"""`megaselect checkpoint`: what it prints, and what it refuses."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from megaselect.cli.main import main
from megaselect.training.checkpoint_files import (
    begin_checkpoint,
    checkpoint_path,
    finish_checkpoint,
    open_checkpoint,
    rank_file,
    write_files,
)
from megaselect.training.checkpoint_records import SavedState
from megaselect.training.state import RunState

RANKS = 3
WEIGHT = torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5).to(torch.bfloat16)
STEP = torch.tensor(4.0)
ROWS = {0: (0, 7), 1: (3, 7), 2: (6, 7)}


@pytest.fixture
def run_dir(tmp_path):
    """A run with two checkpoints of three ranks that share a weight of seven rows, and a tokenizer."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "tokenizer.model").write_bytes(b"pieces")
    for step in (2, 4):
        write_shared(checkpoint_path(run_dir, step), step)
    return run_dir


def write_shared(home, step):
    begin_checkpoint(home)
    files = {}
    for rank, rows in ROWS.items():
        model, optimizer = (rank_file(kind, rank, RANKS) for kind in ("model", "optimizer"))
        part = WEIGHT[rows[0] : rows[0] + 3].contiguous()
        moments = {"exp_avg.weight": part.float()} | ({"step.weight": STEP} if rank == 1 else {})
        tensors = {model: {"weight": part}, optimizer: moments}
        files |= write_files(home, tensors, {model: {"weight": rows}, optimizer: {"exp_avg.weight": rows}})
    config = {"parallel": {"sharding": "parameters"}}
    saved = SavedState(state=RunState(step, 24), loss_scale={}, config=config, data_fingerprint="data")
    finish_checkpoint(home, files, saved, lambda: None)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_verify_prints_a_line_for_each_checkpoint(run_dir, capsys):
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    written = checkpoint_path(run_dir, 2).iterdir()
    total = sum(path.stat().st_size for path in written if path.name != "manifest.json")
    ending = f"whole: 3 ranks, sharing parameters; 7 files, {total} bytes\n"
    assert capsys.readouterr().out == f"step-00000002  {ending}step-00000004  {ending}"
    assert main(["checkpoint", "verify", str(checkpoint_path(run_dir, 4))]) == 0
    assert capsys.readouterr().out == f"step-00000004  {ending}"


def test_verify_names_what_is_damaged(run_dir, capsys):
    flip(checkpoint_path(run_dir, 2) / "model-00002-of-00003.safetensors")
    assert main(["checkpoint", "verify", str(run_dir)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    problem = "model-00002-of-00003.safetensors: its bytes have changed, by their SHA-256"
    assert first == f"step-00000002  damaged: {problem}"
    assert second.startswith("step-00000004  whole: ")


def test_consolidate_writes_whole_tensors_as_one_process_does(run_dir, tmp_path, capsys):
    assert main(["checkpoint", "consolidate", str(run_dir), "--out", str(tmp_path / "new" / "one")]) == 0
    home = checkpoint_path(tmp_path / "new" / "one", 4)
    assert capsys.readouterr().out.startswith(f"{home}: the checkpoint of one process")
    assert {path.name for path in home.iterdir()} == {
        *("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    }
    whole, shared = open_checkpoint(home), open_checkpoint(checkpoint_path(run_dir, 4))
    assert whole.saved == shared.saved
    assert {name: parts[0][1].rows for name, parts in whole.parts("model").items()} == {"weight": None}
    assert [path.name for path in home.parent.iterdir()] == ["step-00000004"]
    assert (tmp_path / "new" / "one" / "tokenizer.model").read_bytes() == b"pieces"
    assert read_back(home) == [True, True, True]


def read_back(home):
    model, optimizer = load_file(home / "model.safetensors"), load_file(home / "optimizer.safetensors")
    return [
        torch.equal(model["weight"], WEIGHT) and model["weight"].dtype == torch.bfloat16,
        torch.equal(optimizer["exp_avg.weight"], WEIGHT.float()),
        torch.equal(optimizer["step.weight"], STEP),
    ]


def test_consolidate_passes_over_damaged_ones(run_dir, tmp_path, capsys):
    flip(checkpoint_path(run_dir, 4) / "optimizer-00000-of-00003.safetensors")
    assert main(["checkpoint", "consolidate", str(run_dir), "--out", str(tmp_path / "one")]) == 0
    assert "step-00000004 is damaged (optimizer-00000-of-00003.safetensors" in capsys.readouterr().err
    assert checkpoint_path(tmp_path / "one", 2).is_dir()


def test_consolidate_refuses_an_existing_target(run_dir, tmp_path, capsys):
    before = sorted(run_dir.rglob("*"))
    assert main(["checkpoint", "consolidate", str(run_dir), "--out", str(run_dir)]) == 2
    assert capsys.readouterr().err == f"error: --out {run_dir} exists already: name a directory that does not\n"
    assert sorted(run_dir.rglob("*")) == before


def test_consolidate_leaves_nothing_where_it_cannot_write(run_dir, tmp_path, capsys, monkeypatch):
    """/proc takes no directories, and a tokenizer that is gone by then no copy."""
    assert main(["checkpoint", "consolidate", str(run_dir), "--out", "/proc/one"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write to --out /proc/one: No such file or directory")
    monkeypatch.setattr(shutil, "copyfile", lambda *_: os.open(tmp_path / "none", os.O_RDONLY))
    assert main(["checkpoint", "consolidate", str(run_dir), "--out", str(tmp_path / "one")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("command", [["verify"], ["consolidate", "--out", "one"]])
def test_a_place_without_checkpoints(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for place in (".", "none", "step-00000004"):
        assert main(["checkpoint", command[0], place, *command[1:]]) == 2
        assert capsys.readouterr().err == (
            f"error: {place} holds no checkpoint: name a run directory or a checkpoints/step-N in it\n"
        )
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("command", [["--help"], ["verify", "--help"], ["consolidate", "--help"]])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["checkpoint", *command])
    out = capsys.readouterr().out
    assert out.startswith("usage: megaselect checkpoint")
    assert max(map(len, out.splitlines())) <= 80


def test_a_mistyped_command(capsys):
    assert main(["checkpoint", "verfy", "x"]) == 2
    assert capsys.readouterr().err == "error: unknown command verfy; did you mean verify?\n"
