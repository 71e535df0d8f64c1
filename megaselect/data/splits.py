"""Training, validation and test: where each split's tokens lie, for one dataset or for a blend of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from megaselect.data.blend import BlendedSource, DataSource
from megaselect.data.sampler import TokenSource
from megaselect.errors import DataError


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How datasets are cut. valid_prefix and test_prefix name datasets of their own for these splits.

    Without them PREFIX_valid and PREFIX_test serve if they are there, else the last parts of the tokens are set apart:
    first validation, then test. A test split is there only if one of these gives it.
    """

    seq_length: int
    seed: int
    vocab_size: int | None = None
    valid_prefix: str | Path | None = None
    test_prefix: str | Path | None = None
    valid_fraction: float = 0.0
    test_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Splits:
    train: DataSource
    valid: DataSource
    test: DataSource | None


class _Place(NamedTuple):
    prefix: str | Path
    part: tuple[float, float]


class _Places(NamedTuple):
    train: _Place
    valid: _Place | None
    test: _Place | None


def open_splits(datasets: Sequence[tuple[Fraction, str | Path]], rules: SplitRules) -> Splits:
    """The splits of one dataset, or of a blend of (weight, prefix), each split of which is a blend of theirs.

    Validation and test run in file order, the same for every evaluation. Raises DataError.
    """
    weights = [weight for weight, _ in datasets]
    places = [_find(prefix, rules) for _, prefix in datasets]
    train = _blend([_open(each.train, "training", rules, number) for number, each in enumerate(places)], weights)
    if rules.valid_prefix is not None:
        valid: DataSource | None = _open(_Place(rules.valid_prefix, (0.0, 1.0)), "validation", rules)
    else:
        valid = _evaluation([each.valid for each in places], weights, "validation", rules)
    if rules.test_prefix is not None:
        test: DataSource | None = _open(_Place(rules.test_prefix, (0.0, 1.0)), "test", rules)
    else:
        test = _evaluation([each.test for each in places], weights, "test", rules)
    if valid is None:
        shown = ", ".join(str(prefix) for _, prefix in datasets)
        raise DataError(
            f"there is nothing to evaluate on: data.valid_fraction is 0, and there is no validation dataset beside "
            f"{shown}; set data.valid_prefix, or a fraction such as 0.05"
        )
    return Splits(train, valid, test)


def _find(prefix: str | Path, rules: SplitRules) -> _Places:
    valid = None if rules.valid_prefix is not None else _beside(prefix, "valid")
    test = None if rules.test_prefix is not None else _beside(prefix, "test")
    valid_fraction = 0.0 if rules.valid_prefix is not None or valid else rules.valid_fraction
    test_fraction = 0.0 if rules.test_prefix is not None or test else rules.test_fraction
    valid_end = 1.0 - test_fraction
    train_end = valid_end - valid_fraction
    if valid_fraction:
        valid = _Place(prefix, (train_end, valid_end))
    if test_fraction:
        test = _Place(prefix, (valid_end, 1.0))
    return _Places(_Place(prefix, (0.0, train_end)), valid, test)


def _beside(prefix: str | Path, split: str) -> _Place | None:
    name = f"{prefix}_{split}"
    return _Place(name, (0.0, 1.0)) if Path(f"{name}.idx").is_file() else None


def _open(place: _Place, split: str, rules: SplitRules, number: int = 0) -> TokenSource:
    """number: of the dataset in a blend; two of one size should not be read in the same order."""
    return TokenSource(
        place.prefix,
        rules.seq_length,
        rules.seed + number,
        part=place.part,
        shuffle=split == "training",
        split=split,
        vocab_size=rules.vocab_size,
    )


def _evaluation(
    places: Sequence[_Place | None], weights: Sequence[Fraction], split: str, rules: SplitRules
) -> DataSource | None:
    """A blend of those datasets that have the split; None where none has."""
    found = [(place, weight) for place, weight in zip(places, weights, strict=True) if place]
    if not found:
        return None
    return _blend([_open(place, split, rules) for place, _ in found], [weight for _, weight in found])


def _blend(sources: list[TokenSource], weights: Sequence[Fraction]) -> DataSource:
    return sources[0] if len(sources) == 1 else BlendedSource(sources, weights)
