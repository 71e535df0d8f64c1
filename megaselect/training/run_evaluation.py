"""A run's model on a split of its own data, or on another dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megaselect.config import Config
from megaselect.data.piece_bytes import piece_bytes
from megaselect.data.record import check_record
from megaselect.data.sampler import Batch, TokenSource
from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError
from megaselect.training.datasets import open_datasets
from megaselect.training.evaluate import Split, evaluate
from megaselect.training.events import finite
from megaselect.training.out_of_memory import memory_errors_explained
from megaselect.training.trained_model import SavedModel

SplitName = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class EvaluationData:
    """What a model is evaluated on. name: for people. tokenizer: None where none is known. notes: for the user."""

    name: str
    split: Split
    tokenizer: Tokenizer | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """loss: mean, in nats a token. tokens: that were predicted. bytes: of their text; None without a tokenizer."""

    samples: int
    tokens: int
    loss: float
    bytes: int | None

    @property
    def perplexity(self) -> float | None:
        """None where it is no number that a float can hold."""
        return math.exp(self.loss) if self.loss < math.log(1e300) else None

    @property
    def bits_per_byte(self) -> float | None:
        """All of the loss, in bits, by the bytes of the text; None where they are not known, or there are none."""
        bits = self.loss * self.tokens / math.log(2)
        return finite(bits / self.bytes) if self.bytes else None


def own_split(saved: SavedModel, split: SplitName) -> EvaluationData:
    """A split of the data that the run was trained with. Raises DataError."""
    overrides = {"data.check": False} | ({"data.tokenizer": str(saved.tokenizer)} if saved.tokenizer else {})
    config = Config.from_dict(saved.config.to_dict(), overrides=overrides)
    try:
        datasets = open_datasets(config)
    except DataError as error:
        raise DataError(f"the run's own data is not to be used: {error}; --data PREFIX takes other data") from None
    source = {"train": datasets.train, "valid": datasets.valid, "test": datasets.test}[split]
    if source is None:
        raise DataError(
            f"--split test: the run {saved.checkpoint.path.parent.parent} has no test split; choose valid, or name a "
            "dataset by --data PREFIX"
        )
    trained_on = saved.checkpoint.saved.data_fingerprint
    changed = f"note: the run's data has changed: fingerprint {trained_on} -> {datasets.fingerprint}"
    notes = () if datasets.fingerprint == trained_on else (changed,)
    description = datasets.description.partition(";")[0]
    return EvaluationData(f"{split} split of {description}", source, datasets.tokenizer, notes)


def other_dataset(saved: SavedModel, prefix: str) -> EvaluationData:
    """The whole dataset at `prefix`, in file order. Raises DataError where it was written with another vocabulary."""
    model = saved.config.model
    tokenizer = Tokenizer(saved.tokenizer) if saved.tokenizer else None
    source = TokenSource(
        prefix, model.seq_length, saved.config.training.seed, shuffle=False, split=prefix, vocab_size=model.vocab_size
    )
    check_record(prefix, saved.tokenizer, tokenizer, model.vocab_size)
    beside = Path(f"{prefix}.model")
    if tokenizer and beside.is_file() and beside.read_bytes() != tokenizer.model_file:
        raise DataError(
            f"{prefix} comes with another tokenizer ({beside}) than the run's ({saved.tokenizer}), so the same id "
            f"means different text; prepare it with --tokenizer {saved.tokenizer}"
        )
    return EvaluationData(prefix, source, tokenizer)


def evaluate_run(
    saved: SavedModel, data: EvaluationData, samples: int | None, micro_batch_size: int, progress: Callable[[int], None]
) -> EvaluationResult:
    """The loss on the first `samples` windows of the data, or on all that there are.

    progress: hears, before each micro-batch, how many are done. Raises OutOfMemoryError.
    """
    source = _Counted(data.split, data.tokenizer)
    samples = min(samples or source.num_windows, source.num_windows)

    def goes_on(done: int) -> bool:
        progress(done)
        return True

    with memory_errors_explained("evaluating", "lower --micro-batch-size"):
        loss = evaluate(saved.model, source, samples, micro_batch_size, goes_on)
    assert loss is not None
    return EvaluationResult(samples, samples * saved.config.model.seq_length, loss, source.bytes)


class _Counted:
    """A split that sums up the bytes of the targets that are read from it."""

    def __init__(self, split: Split, tokenizer: Tokenizer | None) -> None:
        self._split, self.num_windows = split, split.num_windows
        self._lengths = torch.from_numpy(piece_bytes(tokenizer)) if tokenizer else None
        self._bytes = 0

    @property
    def bytes(self) -> int | None:
        """None without a tokenizer."""
        return None if self._lengths is None else self._bytes

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Batch:
        """As of the split. Raises DataError for an id that the tokenizer does not have."""
        batch = self._split.batch(first_sample_index, micro_batch_size)
        if self._lengths is not None:
            highest = int(batch.targets.max())
            if highest >= len(self._lengths):
                raise DataError(
                    f"the data holds token id {highest}, outside the {len(self._lengths)} pieces of the run's "
                    "tokenizer: it was written with another one"
                )
            self._bytes += int(self._lengths[batch.targets].sum())
        return batch
