"""Every token of a dataset, read once, before a run relies on it."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megaselect.data.blend import BlendedSource, DataSource
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.errors import DataError

_CHUNK_TOKENS = 2**22


class Vocabulary(NamedTuple):
    """Ids below `size` have a meaning to `owner`; `remedy` is for who has others."""

    size: int
    owner: str
    remedy: str

    @classmethod
    def of_model(cls, size: int) -> "Vocabulary":
        remedy = "set model.vocab_size to that of the tokenizer it was written with"
        return cls(size, f"the model's vocabulary of {size}", remedy)

    @classmethod
    def of_tokenizer(cls, size: int, path: Path) -> "Vocabulary":
        remedy = "it is damaged, or another tokenizer wrote it: prepare it again, or name that one (data.tokenizer)"
        return cls(size, f"the {size} pieces of the tokenizer {path}", remedy)


class Checked(NamedTuple):
    """What was read, and the lowest and the highest id in it."""

    tokens: int
    documents: int
    lowest: int
    highest: int


def token_chunks(dataset: IndexedDataset) -> Iterator[tuple[int, np.ndarray]]:
    """The token stream in parts of a bounded size, each with where it starts; only one is in memory at a time."""
    tokens = dataset.stream
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        yield start, tokens[start : min(start + _CHUNK_TOKENS, len(tokens))]


def check_sources(sources: Iterable[DataSource], vocabulary: Vocabulary) -> Checked:
    """check_tokens for every dataset that the sources read parts of, once each: what was read altogether."""
    parts = [source.sources if isinstance(source, BlendedSource) else [source] for source in sources]
    prefixes = dict.fromkeys(source.prefix for source in chain.from_iterable(parts))
    checked = [check_tokens(IndexedDataset(prefix), vocabulary) for prefix in prefixes]
    tokens, documents, lows, highs = zip(*checked, strict=True)
    return Checked(sum(tokens), sum(documents), min(lows), max(highs))


def check_tokens(dataset: IndexedDataset, vocabulary: Vocabulary) -> Checked:
    """Read all tokens; raise DataError with the place of the first that is outside the vocabulary."""
    lowest, highest = vocabulary.size, -1
    for start, chunk in token_chunks(dataset):
        least, most = int(chunk.min()), int(chunk.max())
        lowest, highest = min(lowest, least), max(highest, most)
        if least >= 0 and most < vocabulary.size:
            continue
        first = int(np.argmax((chunk < 0) | (chunk >= vocabulary.size)))
        document, place = _locate(dataset, start + first)
        raise DataError(
            f"{dataset.bin_path} holds token id {chunk[first]} in document {document} at token {place} (both counted "
            f"from 0), outside {vocabulary.owner}; {vocabulary.remedy}"
        )
    return Checked(len(dataset.tokens), dataset.num_documents, lowest, highest)


def _locate(dataset: IndexedDataset, position: int) -> tuple[int, int]:
    """The document of a token of the stream, and its place in it."""
    ends = np.cumsum(dataset.sequence_lengths, dtype=np.int64)
    sequence = int(np.searchsorted(ends, position, side="right"))
    document = int(np.searchsorted(dataset.document_bounds, sequence, side="right")) - 1
    first_sequence = int(dataset.document_bounds[document])
    start = int(ends[first_sequence - 1]) if first_sequence else 0
    return document, position - start
