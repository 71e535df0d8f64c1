"""What is in a dataset: counts, lengths, ids, samples and checksums, by one read of its files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaselect.data.check import token_chunks
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.record import read_record
from megaselect.data.tokenizer import Tokenizer

_HISTOGRAM_ROWS = 8
SAMPLE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class FileFacts:
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Documents of at least `least` and at most `most` tokens."""

    least: int
    most: int
    documents: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens in a document."""

    min: int
    median: float
    max: int
    histogram: list[LengthRange]


@dataclass(frozen=True, slots=True)
class EndOfDocument:
    """token: the tokenizer's, or else the one at the end of most documents."""

    token: int
    share_of_tokens: float
    documents_ended: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The first tokens of a document. text: None where there is no tokenizer, or it has not all of the ids."""

    document: int
    ids: list[int]
    text: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """problem: what is said of ids that the tokenizer has not, or PREFIX.json does not know of; None without them."""

    prefix: str
    documents: int
    sequences: int
    tokens: int
    dtype: str
    lowest_id: int
    highest_id: int
    lengths: Lengths
    end_of_document: EndOfDocument
    tokenizer: str | None
    tokenizer_vocab_size: int | None
    files: list[FileFacts]
    samples: list[Sample]
    problem: str | None


def inspect_dataset(prefix: str, num_samples: int, tokenizer_path: Path | None = None) -> Inspection:
    """Read the dataset at `prefix` once, in memory bounded by its index. Raises DataError.

    tokenizer_path: of the samples; None takes PREFIX.model, where it is there.
    """
    dataset = IndexedDataset(prefix)
    tokenizer_path = tokenizer_path or _tokenizer_beside(prefix)
    tokenizer = Tokenizer(tokenizer_path) if tokenizer_path else None
    starts = _document_starts(dataset)
    lasts = _last_tokens(dataset, starts)
    ending = tokenizer.end_of_document_id if tokenizer else _most_common(lasts)
    lowest, highest, num_endings = _scan(dataset, ending)
    num_tokens = int(starts[-1])
    return Inspection(
        prefix=prefix,
        documents=dataset.num_documents,
        sequences=len(dataset),
        tokens=num_tokens,
        dtype=dataset.dtype.name,
        lowest_id=lowest,
        highest_id=highest,
        lengths=_lengths(np.diff(starts)),
        end_of_document=EndOfDocument(ending, num_endings / num_tokens, int((lasts == ending).sum())),
        tokenizer=str(tokenizer_path) if tokenizer_path else None,
        tokenizer_vocab_size=tokenizer.vocab_size if tokenizer else None,
        files=[_facts(path) for path in (dataset.bin_path, dataset.idx_path)],
        samples=[_sample(dataset, starts, document, tokenizer) for document in _spread(starts, num_samples)],
        problem=_problem(lowest, highest, _vocabularies(prefix, tokenizer_path, tokenizer)),
    )


def _tokenizer_beside(prefix: str) -> Path | None:
    paths = (Path(f"{name}.model") for name in _prefixes(prefix))
    return next((path for path in paths if path.is_file()), None)


def _prefixes(prefix: str) -> tuple[str, ...]:
    """Where tokenizer and record may be: PREFIX_valid and PREFIX_test share those of PREFIX."""
    return prefix, prefix.removesuffix("_valid"), prefix.removesuffix("_test")


def _vocabularies(prefix: str, path: Path | None, tokenizer: Tokenizer | None) -> list[tuple[int, str]]:
    """Sizes that the tokenizer and the record tell, each with how it is called."""
    found = [(tokenizer.vocab_size, f"tokenizer {path}")] if tokenizer else []
    record = next(filter(None, map(read_record, _prefixes(prefix))), None)
    return [*found, (record.vocab_size, f"tokenizer that {record.path} names")] if record else found


def _problem(lowest: int, highest: int, vocabularies: list[tuple[int, str]]) -> str | None:
    if lowest < 0:
        return f"there are ids below 0, from {lowest:,}: the data is damaged"
    for size, owner in vocabularies:
        if highest >= size:
            return (
                f"there are ids up to {highest:,}, beyond the {size:,} pieces of the {owner}: the data is damaged, or "
                "another one wrote it"
            )
    return None


def _document_starts(dataset: IndexedDataset) -> np.ndarray:
    """Where each document starts in the token stream, and where the last one ends: [documents + 1]."""
    ends = np.concatenate(([0], np.cumsum(dataset.sequence_lengths, dtype=np.int64)))
    return ends[dataset.document_bounds]


def _last_tokens(dataset: IndexedDataset, starts: np.ndarray) -> np.ndarray:
    """The last token of every document that has one."""
    ends = starts[1:][np.diff(starts) > 0]
    tokens = dataset.tokens
    if isinstance(tokens, np.ndarray):
        return tokens[ends - 1]
    return np.concatenate([tokens[end - 1 : end] for end in ends.tolist()])


def _most_common(tokens: np.ndarray) -> int:
    values, counts = np.unique(tokens, return_counts=True)
    return int(values[np.argmax(counts)])


def _scan(dataset: IndexedDataset, ending: int) -> tuple[int, int, int]:
    """Lowest and highest id, and how often `ending` comes."""
    lows, highs, endings = zip(
        *((int(chunk.min()), int(chunk.max()), int((chunk == ending).sum())) for _, chunk in token_chunks(dataset)),
        strict=True,
    )
    return min(lows), max(highs), sum(endings)


def _lengths(lengths: np.ndarray) -> Lengths:
    """Ranges from one power of two to another, few enough to be looked at."""
    bits = int(lengths.max()).bit_length()
    step = max(1, -(-bits // _HISTOGRAM_ROWS))
    edges = [0, *(2**power for power in range(0, bits + step, step))]
    counts, _ = np.histogram(lengths, edges)
    ranges = [
        LengthRange(low, high - 1, int(count))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    return Lengths(int(lengths.min()), float(np.median(lengths)), int(lengths.max()), ranges)


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(str(path), path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _spread(starts: np.ndarray, num_samples: int) -> list[int]:
    """Documents that have tokens, as many as asked for and evenly over the dataset."""
    filled = np.flatnonzero(np.diff(starts))
    count = min(num_samples, len(filled))
    return [int(filled[number * len(filled) // count]) for number in range(count)]


def _sample(dataset: IndexedDataset, starts: np.ndarray, document: int, tokenizer: Tokenizer | None) -> Sample:
    start, end = int(starts[document]), int(starts[document + 1])
    ids = dataset.tokens[start : min(start + SAMPLE_TOKENS, end)].tolist()
    known = tokenizer is not None and all(0 <= token < tokenizer.vocab_size for token in ids)
    return Sample(document, ids, tokenizer.decode(ids) if tokenizer and known else None)
