"""Batches as a function of the sample index: the same tokens for any batch size, rank layout, or point of resumption.

The token stream is cut into windows of seq_length + 1 tokens, one every seq_length tokens, so that neighbours share one
token and no token is a target twice in an epoch. A rest shorter than a window at the end is left out.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.permutation import permute
from megaselect.errors import DataError

# Windows whose places are found at a time: so many that finding one takes half a microsecond.
_BLOCK_WINDOWS = 4096


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: torch.Tensor  # [b, s] int64
    targets: torch.Tensor  # [b, s] int64, the token after each token
    sample_index: torch.Tensor  # [b] int64

    def pinned(self) -> "Batch":
        """The same in page-locked memory."""
        return Batch(self.tokens.pin_memory(), self.targets.pin_memory(), self.sample_index.pin_memory())


class BatchSource(Protocol):
    """What training and evaluation read: a split of one dataset, a blend of several, or what stands before one."""

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Batch:
        """Samples first_sample_index, …, first_sample_index + micro_batch_size - 1, on the CPU."""
        ...


class WindowSampler:
    """Maps a sample index, counted from 0 over the whole run, to the token at which its window starts.

    Each epoch visits every window once, in an order chosen by (seed, epoch), or in file order without `shuffle`.
    """

    def __init__(
        self, num_tokens: int, seq_length: int, seed: int, *, shuffle: bool = True, split: str = "training"
    ) -> None:
        self.num_windows = (num_tokens - 1) // seq_length
        if self.num_windows < 1:
            raise DataError(
                f"the {split} split has {num_tokens} tokens, but one window of seq_length {seq_length} takes "
                f"{seq_length + 1}; use a shorter seq_length or more text"
            )
        self._seq_length, self._seed, self._shuffle = seq_length, seed, shuffle
        # Samples are asked for in order, and one order is a little ahead of the other where batches are read ahead.
        self._recent_block = lru_cache(maxsize=4)(self._block)

    def window_starts(self, first_sample_index: int, num_samples: int) -> np.ndarray:
        """Starts, in tokens, of the windows of samples first_sample_index, …: int64 [num_samples]."""
        starts = np.empty(num_samples, np.int64)
        done = 0
        while done < num_samples:
            epoch, place = divmod(first_sample_index + done, self.num_windows)
            number, offset = divmod(place, _BLOCK_WINDOWS)
            part = self._recent_block(epoch, number)[offset : offset + num_samples - done]
            starts[done : done + len(part)] = part
            done += len(part)
        return starts

    def _block(self, epoch: int, number: int) -> np.ndarray:
        """Starts of the windows at places number * _BLOCK_WINDOWS, … of the epoch, up to a block or the epoch's end."""
        first = number * _BLOCK_WINDOWS
        places = np.arange(first, min(first + _BLOCK_WINDOWS, self.num_windows))
        windows = permute(places, self.num_windows, (self._seed, epoch)) if self._shuffle else places
        return windows * self._seq_length


class TokenSource:
    """Batches of windows from the indexed dataset at `prefix`, or from one part of its token stream.

    part: where the split begins and ends, as fractions of the stream.
    split: what error messages call it.
    vocab_size: of the model; a batch with an id outside it raises DataError, where the model would fail obscurely.
    """

    def __init__(
        self,
        prefix: str | Path,
        seq_length: int,
        seed: int,
        *,
        part: tuple[float, float] = (0.0, 1.0),
        shuffle: bool = True,
        split: str = "training",
        vocab_size: int | None = None,
    ) -> None:
        dataset = IndexedDataset(prefix)
        self.prefix, self.part = str(prefix), part
        self._tokens, self._bin_path = dataset.stream, dataset.bin_path
        self._first_token, end = (int(fraction * len(self._tokens)) for fraction in part)
        self.num_tokens = end - self._first_token
        self._sampler = WindowSampler(self.num_tokens, seq_length, seed, shuffle=shuffle, split=split)
        self.num_windows = self._sampler.num_windows
        self._seq_length, self._vocab_size = seq_length, vocab_size

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Batch:
        """Samples first_sample_index, …, first_sample_index + micro_batch_size - 1, on the CPU."""
        tokens = torch.from_numpy(self.windows(first_sample_index, micro_batch_size))
        return split_windows(tokens, first_sample_index)

    def windows(self, first_sample_index: int, num_samples: int) -> np.ndarray:
        """The tokens of as many samples, each with the one that follows: int64 [b, s + 1]."""
        length = self._seq_length + 1
        windows = np.empty((num_samples, length), np.int64)
        starts = self._first_token + self._sampler.window_starts(first_sample_index, num_samples)
        for row, start in enumerate(starts.tolist()):
            windows[row] = self._tokens[start : start + length]
        self._check_vocabulary(windows)
        return windows

    def counts(self, num_samples: int) -> dict[str, int]:
        """Nothing to tell apart: every sample comes from the one dataset."""
        return {}

    def _check_vocabulary(self, windows: np.ndarray) -> None:
        lowest, highest = windows.min(), windows.max()
        if lowest < 0 or (self._vocab_size is not None and highest >= self._vocab_size):
            wrong = lowest if lowest < 0 else highest
            raise DataError(
                f"{self._bin_path} holds token id {wrong}, outside the model's vocabulary of {self._vocab_size}; "
                "set model.vocab_size to that of the tokenizer it was written with"
            )


def split_windows(windows: torch.Tensor, first_sample_index: int) -> Batch:
    """Tokens and targets out of windows [b, s + 1]."""
    # Copies: contiguous() would let the two of a single sample share their memory, which the ledger counts once.
    sample_index = torch.arange(first_sample_index, first_sample_index + len(windows))
    return Batch(windows[:, :-1].clone(), windows[:, 1:].clone(), sample_index)
