"""The data of a run: training, validation and test batches, and the tokenizer that reads and writes its text."""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.config import Config
from megaselect.data.blend import DataSource
from megaselect.data.check import Vocabulary, check_sources
from megaselect.data.fingerprint import fingerprint
from megaselect.data.record import check_record
from megaselect.data.splits import SplitRules, Splits, open_splits
from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError
from megaselect.training.data_choice import Chosen, choose


@dataclass(frozen=True)
class Datasets:
    """tokenizer: None where a user's indexed dataset comes without one; then no sample text is written.

    test: None where no test split was asked for. fingerprint: of the training split, see data.fingerprint.
    notes: for the beginning of the run's log.
    """

    train: DataSource
    valid: DataSource
    test: DataSource | None
    tokenizer: Tokenizer | None
    description: str
    fingerprint: str
    notes: tuple[str, ...] = ()


def open_datasets(config: Config) -> Datasets:
    """The config's dataset or blend, or the default corpus, which is built on first use. Raises DataError."""
    data, model = config.data, config.model
    chosen = choose(config.data)
    tokenizer = _open_tokenizer(chosen, model.vocab_size)
    rules = SplitRules(
        model.seq_length,
        config.training.seed,
        model.vocab_size,
        chosen.valid_prefix,
        data.test_prefix,
        data.valid_fraction,
        data.test_fraction,
    )
    splits = open_splits(chosen.datasets, rules)
    notes = (_check(splits, chosen, tokenizer, model.vocab_size),) if data.check else ()
    description = f"{chosen.description}; {splits.train.num_tokens:,} tokens"
    return Datasets(splits.train, splits.valid, splits.test, tokenizer, description, fingerprint(splits.train), notes)


def _check(splits: Splits, chosen: Chosen, tokenizer: Tokenizer | None, vocab_size: int) -> str:
    """Read every token; a note of what was found. Raises DataError."""
    vocabulary = Vocabulary.of_model(vocab_size)
    if tokenizer and chosen.tokenizer:  # no larger than the model's
        vocabulary = Vocabulary.of_tokenizer(tokenizer.vocab_size, chosen.tokenizer)
    checked = check_sources(filter(None, (splits.train, splits.valid, splits.test)), vocabulary)
    documents = "1 document" if checked.documents == 1 else f"{checked.documents:,} documents"
    return (
        f"note: --data.check read {checked.tokens:,} tokens in {documents}: ids {checked.lowest:,} to "
        f"{checked.highest:,}, all in the vocabulary of {vocabulary.size:,}"
    )


def open_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the config's data, whose tokens are not read; None where it has none. Raises DataError."""
    return _open_tokenizer(choose(config.data), config.model.vocab_size)


def _open_tokenizer(chosen: Chosen, vocab_size: int) -> Tokenizer | None:
    tokenizer = Tokenizer(chosen.tokenizer) if chosen.tokenizer else None
    if tokenizer and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer {chosen.tokenizer} has {tokenizer.vocab_size} pieces, model.vocab_size is {vocab_size}: "
            "raise model.vocab_size, or prepare the data with a smaller --vocab-size"
        )
    for _, prefix in chosen.datasets:
        check_record(prefix, chosen.tokenizer, tokenizer, vocab_size)
    return tokenizer
