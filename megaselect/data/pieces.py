"""A corpus cut into what is encoded in one go. The cuts follow from its bytes alone, never from who encodes them."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from megaselect.data.documents import BLOCK_BYTES, Cutter, Document, cut_blocks, decode, read_raw_blocks, split_three
from megaselect.data.json_lines import LineOptions, Lines, cut_lines, parse_lines
from megaselect.data.os_errors import explain_os_errors
from megaselect.data.workspace import PreparationStopped

# What a process takes at a time: a tenth of a second's work, beside which handing it over costs nothing.
CHUNK_BYTES = 512 * 1024
_CHUNK_PIECES = 512


class BlockPiece(NamedTuple):
    """A block of a text document, see documents.RawBlock. kind: the document's."""

    raw: bytes
    kind: str
    split: str
    ends_document: bool
    starts_document: bool
    seamless: bool


Piece = BlockPiece | Lines


class Division(NamedTuple):
    """texts: split -> its text documents. lines: the .jsonl files, whose lines are split one by one.

    moved: lines of these that are in another split than the drawn one, see json_lines.Lines.
    """

    texts: dict[str, list[Document]]
    lines: list[Document]
    moved: Mapping[Document, tuple[tuple[int, str], ...]] = MappingProxyType({})

    @property
    def num_bytes(self) -> int:
        documents = [document for documents in (*self.texts.values(), self.lines) for document in documents]
        return sum(document.num_bytes for document in documents)


def divide(documents: list[Document], valid_fraction: float, test_fraction: float) -> Division:
    """Texts are split by file (see documents.split_documents)."""
    lines = [document for document in documents if document.kind.startswith("jsonl")]
    texts = [document for document in documents if not document.kind.startswith("jsonl")]
    train, valid, test = split_three(texts, valid_fraction, test_fraction)
    return Division({"train": train, "valid": valid, "test": test}, lines)


def cut_chunks(division: Division, cut: Cutter = cut_blocks) -> Iterator[list[Piece]]:
    """The corpus, piece after piece, as many at a time as make about CHUNK_BYTES. cut: cuts the text documents."""
    chunk: list[Piece] = []
    num_bytes = 0
    for piece in _pieces(division, tuple(division.texts), cut):
        chunk.append(piece)
        num_bytes += len(piece.raw)
        if num_bytes >= CHUNK_BYTES or len(chunk) >= _CHUNK_PIECES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def sample_text(division: Division, options: LineOptions, num_bytes: int) -> Iterator[str]:
    """Every k-th block of the training text, spread evenly over it: about `num_bytes`, twice that at most.

    Lines that are passed over are not parsed: of a group of them as long as n blocks, the n-th parts count as blocks.
    """
    texts = division.texts["train"]
    stride = -(-sum(document.num_bytes for document in (*texts, *division.lines)) // num_bytes)
    position = 0
    for piece in _pieces(division, ("train",), cut_blocks):
        length = 1 if isinstance(piece, BlockPiece) else max(len(piece.raw) // BLOCK_BYTES, 1)
        taken = {index for index in range(length) if (position + index) % stride == 0}
        position += length
        if not taken:
            continue
        if isinstance(piece, BlockPiece):
            yield decode(piece.raw)[0]
        else:
            yield from _sample_lines(piece, options, length, taken)


def _sample_lines(lines: Lines, options: LineOptions, length: int, taken: set[int]) -> Iterator[str]:
    before = 0
    for text in parse_lines(lines, options):
        if text.split == "train":
            for block in text.blocks(cut_blocks):
                if min(before // BLOCK_BYTES, length - 1) in taken:
                    yield decode(block.raw)[0]
                before += len(block.raw)


def _pieces(division: Division, splits: Iterable[str], cut: Cutter) -> Iterator[Piece]:
    with explain_os_errors("read the input", "make it readable and run the same command again", PreparationStopped):
        for split in splits:
            for document in division.texts[split]:
                for raw, ends, starts, seamless in read_raw_blocks(document, cut):
                    yield BlockPiece(raw, document.kind, split, ends, starts, seamless)
        for document in division.lines:
            yield from cut_lines(document, division.moved.get(document, ()))
