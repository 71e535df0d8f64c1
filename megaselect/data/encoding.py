"""Pieces of a corpus to token ids, in any process: the same piece gives the same ids."""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from megaselect.data.documents import decode
from megaselect.data.indexed_dataset import token_dtype
from megaselect.data.json_lines import LineOptions, Lines, parse_lines
from megaselect.data.pieces import BlockPiece, Piece
from megaselect.data.tokenizer import TextPart, Tokenizer

# Bounds what is held at a time of a long line's text.
_BLOCKS_PER_CALL = 64


@dataclass(slots=True)
class Counts:
    """Of a split, or of one kind of file in it. bytes: of the text as UTF-8, wrong bytes of text files included.

    empty_documents, null_documents: of .jsonl files, passed over and not among the documents.
    seamless_cuts: places where a document was cut and the tokens may be others than those of the whole.
    """

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    replaced_bytes: int = 0
    replaced_surrogates: int = 0
    empty_documents: int = 0
    null_documents: int = 0
    seamless_cuts: int = 0

    def add(self, other: "Counts") -> None:
        """Add each number of the other's."""
        for name in (number.name for number in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class SplitTokens:
    """What a chunk adds to a split: token ids, and the lengths of the documents that end in it.

    Lengths are of the tokens here: the first document may have begun in an earlier chunk.
    open_tokens: at the end, of a document that goes on.
    """

    tokens: bytearray = field(default_factory=bytearray)
    closed: array = field(default_factory=lambda: array("q"))
    open_tokens: int = 0


@dataclass(slots=True)
class EncodedChunk:
    """splits: what each is given. counts: by split and kind of file. num_bytes: of the chunk's pieces."""

    num_bytes: int
    splits: dict[str, SplitTokens] = field(default_factory=lambda: defaultdict(SplitTokens))
    counts: dict[tuple[str, str], Counts] = field(default_factory=lambda: defaultdict(Counts))


class _Text(NamedTuple):
    part: TextPart
    split: str
    kind: str


class Encoder:
    """Encodes with one tokenizer. num_threads: as in Tokenizer.encode_batch."""

    def __init__(self, tokenizer: Tokenizer, options: LineOptions, num_threads: int) -> None:
        self._tokenizer, self._options, self._num_threads = tokenizer, options, num_threads
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._end = np.asarray([tokenizer.end_of_document_id], self._dtype).tobytes()

    def encode(self, chunk: list[Piece]) -> EncodedChunk:
        """Raises DataError for lines that hold no document."""
        encoded = EncodedChunk(sum(len(piece.raw) for piece in chunk))
        texts = chain.from_iterable(self._texts(piece, encoded.counts) for piece in chunk)
        while batch := list(islice(texts, _BLOCKS_PER_CALL)):
            ids = self._tokenizer.encode_parts([text.part for text in batch], self._num_threads)
            for text, tokens in zip(batch, ids, strict=True):
                self._add(encoded, text, tokens)
        return encoded

    def _texts(self, piece: Piece, counts: dict[tuple[str, str], Counts]) -> Iterator[_Text]:
        if isinstance(piece, BlockPiece):
            text, replaced = decode(piece.raw)
            count = Counts(
                int(piece.ends_document), len(piece.raw), replaced_bytes=replaced, seamless_cuts=int(piece.seamless)
            )
            counts[piece.split, piece.kind].add(count)
            yield _Text(TextPart(text, piece.starts_document, piece.ends_document), piece.split, piece.kind)
        else:
            yield from self._line_texts(piece, counts)

    def _line_texts(self, lines: Lines, counts: dict[tuple[str, str], Counts]) -> Iterator[_Text]:
        for line in parse_lines(lines, self._options):
            count = counts[line.split, lines.kind]
            count.documents += bool(line.raw)
            count.null_documents += line.is_null
            count.empty_documents += not line.raw and not line.is_null
            count.bytes += len(line.raw)
            count.replaced_bytes += line.replaced_bytes
            count.replaced_surrogates += line.replaced_surrogates
            for raw, ends, starts, seamless in line.blocks(self._tokenizer.cut):
                count.seamless_cuts += seamless
                yield _Text(TextPart(decode(raw)[0], starts, ends), line.split, lines.kind)

    def _add(self, encoded: EncodedChunk, text: _Text, tokens: np.ndarray) -> None:
        split = encoded.splits[text.split]
        split.tokens += tokens.astype(self._dtype).tobytes()
        num_tokens = len(tokens) + text.part.ends_document
        split.open_tokens += num_tokens
        if text.part.ends_document:
            split.tokens += self._end
            split.closed.append(split.open_tokens)
            split.open_tokens = 0
        encoded.counts[text.split, text.kind].tokens += num_tokens
