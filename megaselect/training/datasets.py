"""The data of a run: training and validation batches, and the tokenizer that reads and writes its text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megaselect.config import Config
from megaselect.data.prepare import prepare_default_corpus
from megaselect.data.sampler import TokenSource, open_splits
from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError


@dataclass(frozen=True)
class Datasets:
    """tokenizer: None where a user's indexed dataset comes without one; then no sample text is written."""

    train: TokenSource
    valid: TokenSource
    tokenizer: Tokenizer | None
    description: str


def open_datasets(config: Config) -> Datasets:
    """The config's dataset, or the default corpus, which is built on first use. Raises DataError."""
    data = config.data
    if data.prefix is None:
        cache = Path(data.cache_dir) if data.cache_dir else None
        paths = prepare_default_corpus(cache, data.vocab_size)
        prefix, valid_prefix = paths.train_prefix, paths.valid_prefix
        tokenizer_path, description = Path(data.tokenizer or paths.tokenizer_path), paths.description
    else:
        prefix, valid_prefix = Path(data.prefix), data.valid_prefix
        beside = Path(f"{data.prefix}.model")
        tokenizer_path = Path(data.tokenizer) if data.tokenizer else beside if beside.is_file() else None
        description = str(data.prefix)
    tokenizer = Tokenizer(tokenizer_path) if tokenizer_path else None
    if tokenizer and tokenizer.vocab_size > config.model.vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer_path} has {tokenizer.vocab_size} pieces, model.vocab_size is "
            f"{config.model.vocab_size}: raise model.vocab_size, or prepare the data with a smaller --vocab-size"
        )
    train, valid = open_splits(
        prefix,
        valid_prefix,
        data.valid_fraction,
        config.model.seq_length,
        config.training.seed,
        vocab_size=config.model.vocab_size,
    )
    return Datasets(train, valid, tokenizer, f"{description}; {train.num_tokens:,} tokens")
