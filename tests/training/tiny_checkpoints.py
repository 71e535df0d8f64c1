"""Checkpoints of a few hundred bytes, whole, damaged and forged with checksums that fit."""

import hashlib

import torch
from torch import nn

from megaselect.config import Config
from megaselect.training.checkpoint import load_checkpoint
from megaselect.training.checkpoint_files import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    checkpoint_path,
    open_checkpoint,
    tensors_in,
    write_checkpoint,
)
from megaselect.training.checkpoint_records import FileRecord, Manifest, SavedState
from megaselect.training.checkpoint_writer import CheckpointSaver
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 16, "vocab_size": 256}
FILES = (MODEL, OPTIMIZER, STATE, MANIFEST)


def tiny_config(**training):
    return Config.from_dict({"model": SHAPE, "training": {"device": "cpu", **training}})


class Tiny:
    """A model of 10 weights and its optimizer, some steps of training old."""

    def __init__(self, seed=0, config=None, dtype=torch.float32):
        self.config = config or tiny_config()
        torch.manual_seed(seed)
        self.model = nn.Linear(4, 2).to(dtype)
        self.optimizer = MixedPrecisionAdamW(self.model, self.config.training)

    def train(self, steps=1):
        for _ in range(steps):
            self.optimizer.backward(self.model(torch.ones(3, 4, dtype=next(self.model.parameters()).dtype)).sum())
            self.optimizer.step(1e-2)
        return self

    def tensors(self):
        """All that a checkpoint holds, as it is now."""
        weights = dict(self.model.named_parameters())
        return {name: tensor.detach().clone() for name, tensor in (weights | self.optimizer.tensors()).items()}

    def write(self, run_dir, state):
        """A checkpoint without a saver; returns its path."""
        home = checkpoint_path(run_dir, state.step)
        saved = SavedState(
            state=state, loss_scale=self.optimizer.scalars(), config=self.config.to_dict(), data_fingerprint="data"
        )
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        write_checkpoint(home, {MODEL: weights, OPTIMIZER: self.optimizer.tensors()}, saved, lambda: None)
        return home

    def load(self, path):
        """Its state, and the tensors afterwards."""
        state = load_checkpoint(open_checkpoint(path), self.model, self.optimizer)
        return state, self.tensors()

    def saver(self, run_dir, notes, sync=lambda: None):
        return CheckpointSaver(run_dir, self.config.training, "data", sync, notes.append)


def states(*steps):
    return [RunState(step, 4 * step) for step in steps]


def names(run_dir):
    """What lies in RUN/checkpoints, hidden files too."""
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*"))


def same(tensors, expected):
    return tensors.keys() == expected.keys() and all(tensors[name].equal(expected[name]) for name in tensors)


def flip(path, position=-1):
    """Another bit in one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def reseal(home, keep_tensors=False):
    """Write a manifest that fits the files as they are now, as far as they can be read.

    keep_tensors: the tensors in it stay those of before.
    """
    manifest = Manifest.model_validate_json((home / MANIFEST).read_bytes())
    files = {}
    for name in (MODEL, OPTIMIZER, STATE):
        content = (home / name).read_bytes()
        try:
            tensors = manifest.files[name].tensors if keep_tensors or name == STATE else tensors_in(home / name)
        except Exception:
            tensors = manifest.files[name].tensors
        files[name] = FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), tensors=tensors)
    (home / MANIFEST).write_text(Manifest.of(files).model_dump_json())
