"""Batches as a function of the sample index: the same tokens for any batch size, rank layout, or point of resumption.

The token stream is cut into windows of seq_length + 1 tokens, one every seq_length tokens, so that neighbours share one
token and no token is a target twice in an epoch. A rest shorter than a window at the end is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.permutation import permute
from megaselect.errors import DataError


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: torch.Tensor  # [b, s] int64
    targets: torch.Tensor  # [b, s] int64, the token after each token
    sample_index: torch.Tensor  # [b] int64


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

    def window_start(self, sample_index: int) -> int:
        epoch, window = divmod(sample_index, self.num_windows)
        if self._shuffle:
            window = permute(window, self.num_windows, (self._seed, epoch))
        return window * self._seq_length


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
        self._tokens, self._bin_path = dataset.tokens, dataset.bin_path
        self._first_token, end = (int(fraction * len(self._tokens)) for fraction in part)
        self.num_tokens = end - self._first_token
        self._sampler = WindowSampler(self.num_tokens, seq_length, seed, shuffle=shuffle, split=split)
        self.num_windows = self._sampler.num_windows
        self._seq_length, self._vocab_size = seq_length, vocab_size

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Batch:
        """Samples first_sample_index, …, first_sample_index + micro_batch_size - 1, on the CPU."""
        sample_index = range(first_sample_index, first_sample_index + micro_batch_size)
        windows = np.stack([self._window(index) for index in sample_index])  # [b, s + 1]
        self._check_vocabulary(windows)
        tokens = torch.from_numpy(windows)
        # Copies: contiguous() would let the two of a single sample share their memory, which the ledger counts once.
        return Batch(tokens[:, :-1].clone(), tokens[:, 1:].clone(), torch.tensor(sample_index))

    def _window(self, sample_index: int) -> np.ndarray:
        start = self._first_token + self._sampler.window_start(sample_index)
        return self._tokens[start : start + self._seq_length + 1].astype(np.int64)

    def _check_vocabulary(self, windows: np.ndarray) -> None:
        lowest, highest = windows.min(), windows.max()
        if lowest < 0 or (self._vocab_size is not None and highest >= self._vocab_size):
            wrong = lowest if lowest < 0 else highest
            raise DataError(
                f"{self._bin_path} holds token id {wrong}, outside the model's vocabulary of {self._vocab_size}; "
                "set model.vocab_size to that of the tokenizer it was written with"
            )


def open_splits(
    prefix: str | Path,
    valid_prefix: str | Path | None,
    valid_fraction: float,
    seq_length: int,
    seed: int,
    vocab_size: int | None = None,
) -> tuple[TokenSource, TokenSource]:
    """Training and validation sources; validation runs in file order, the same for every evaluation.

    Without `valid_prefix`, PREFIX_valid serves if it is there (`megaselect data prepare` writes it); else the last
    `valid_fraction` of the tokens at `prefix` is set apart.
    """
    if valid_prefix is None and Path(f"{prefix}_valid.idx").is_file():
        valid_prefix = f"{prefix}_valid"
    train_part = valid_part = (0.0, 1.0)
    if valid_prefix is None:
        valid_prefix, train_part, valid_part = prefix, (0.0, 1.0 - valid_fraction), (1.0 - valid_fraction, 1.0)
    train = TokenSource(prefix, seq_length, seed, part=train_part, vocab_size=vocab_size)
    valid = TokenSource(
        valid_prefix, seq_length, seed, part=valid_part, shuffle=False, split="validation", vocab_size=vocab_size
    )
    return train, valid
