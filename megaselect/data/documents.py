"""Documents: text files, or byte ranges of them, read as UTF-8 in blocks and split into training and validation."""

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from megaselect.data.compressed import compression, open_text

# Encoding time grows faster than a block's length, and a block is what a thread encodes: small, yet many words long.
BLOCK_BYTES = 16 * 1024

# How the surrogateescape handler spells a byte that is not UTF-8. Valid UTF-8 never decodes to these.
_UNDECODABLE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Document:
    """Bytes [start, stop) of one file's text. `name` is its path relative to the corpus, with forward slashes.

    kind: "text", or "jsonl" for a file of many documents; then ".gz" or ".zst", or several of them as in the file's
    name, and the bytes are those within.
    """

    name: str
    path: Path
    start: int
    stop: int
    kind: str = "text"

    @classmethod
    def whole(cls, path: Path, name: str) -> "Document":
        """All of a text file that is not compressed."""
        return cls(name, path, 0, path.stat().st_size)

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start

    @property
    def name_digest(self) -> bytes:
        """SHA-256 of the name, by which splits are drawn: the same whether the file is compressed or not."""
        name = self.name[: len(self.name) - len(compression(self.kind))]
        return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


class RawBlock(NamedTuple):
    """seamless: it ends where the tokens of the whole may not; see data.seams."""

    raw: bytes
    ends_document: bool
    starts_document: bool = True
    seamless: bool = False


# Cuts the next bytes of a file, as many as the number says, into blocks.
Cutter = Callable[[BinaryIO, int], Iterator[RawBlock]]


class TextBlock(NamedTuple):
    text: str
    replaced_bytes: int
    ends_document: bool


def read_blocks(document: Document) -> Iterator[TextBlock]:
    """Text of a document in blocks of BLOCK_BYTES to twice that, cut at line ends where lines are not longer.

    The blocks concatenate to the document. Bytes that are not UTF-8 become U+FFFD, one for each, and are counted.
    """
    for block in read_raw_blocks(document, cut_blocks):
        yield TextBlock(*decode(block.raw), block.ends_document)


def read_raw_blocks(document: Document, cut: Cutter) -> Iterator[RawBlock]:
    """A document as `cut` cuts it, into blocks of which each can be decoded alone."""
    with open_text(document.path, document.start) as file:
        yield from cut(file, document.num_bytes)


def cut_blocks(file: BinaryIO, num_bytes: int) -> Iterator[RawBlock]:
    """The next `num_bytes` of a file in blocks, see `read_blocks`; no UTF-8 character is torn."""
    left, torn, starts = num_bytes, b"", True
    while left > 0:
        read = file.read(min(BLOCK_BYTES, left))
        read += file.readline(min(BLOCK_BYTES, left - len(read)))
        # A file that shrank since it was listed ends here instead of looping for ever.
        left = left - len(read) if read else 0
        raw = torn + read
        whole = len(raw) - _torn_bytes(raw) if left else len(raw)
        raw, torn = raw[:whole], raw[whole:]
        yield RawBlock(raw, left == 0, starts)
        starts = False


def decode(raw: bytes) -> tuple[str, int]:
    """Text of UTF-8, and how many bytes of it were none and became U+FFFD, one for each."""
    try:
        return raw.decode(), 0
    except UnicodeDecodeError:
        return _UNDECODABLE.subn("\ufffd", raw.decode(errors="surrogateescape"))


def _torn_bytes(raw: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that they do not end, as Python's decoder sees it: 0 to 3."""
    for back in range(1, min(3, len(raw)) + 1):
        if raw[-back] & 0xC0 != 0x80:  # not inside a character, see _cut
            return back - codecs.utf_8_decode(raw[-back:], "surrogateescape", False)[1]
    return 0


def manifest_sha256(documents: Iterable[Document]) -> str:
    """SHA-256 of the lines that `sha256sum NAME…` prints for the documents' whole files: anyone can check it."""
    return sha256_of_manifest((_file_sha256(document.path), document.name) for document in documents)


def sha256_of_manifest(entries: Iterable[tuple[str, str]]) -> str:
    """The same of (SHA-256 of a file, its name)."""
    manifest = hashlib.sha256()
    for content, name in entries:
        manifest.update(f"{content}  {name}\n".encode(errors="surrogateescape"))
    return manifest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_documents(documents: list[Document], valid_fraction: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, about `valid_fraction` of the bytes in the latter, in the order given.

    Whole files go to validation, in the order of a hash of their names, as long as they fit. Where they come to less
    than half of what was asked for (one large file, say), the tail of the largest remaining file makes up the rest.
    """
    wanted = round(valid_fraction * sum(document.num_bytes for document in documents))
    left = wanted
    chosen = set()
    for document in sorted(documents, key=lambda document: document.name_digest):
        if document.num_bytes <= left:
            chosen.add(document)
            left -= document.num_bytes
    train = [document for document in documents if document not in chosen]
    valid = [document for document in documents if document in chosen]
    if left > wanted / 2:
        largest = max(range(len(train)), key=lambda index: train[index].num_bytes)
        train[largest], tail = _cut(train[largest], left)
        valid.append(tail)
    return [document for document in train if document.num_bytes], valid


def split_three(
    documents: list[Document], valid_fraction: float, test_fraction: float
) -> tuple[list[Document], list[Document], list[Document]]:
    """Training, validation and test documents: `split_documents` for the test split, then for validation."""
    rest, test = split_documents(documents, test_fraction) if test_fraction else (documents, [])
    train, valid = split_documents(rest, valid_fraction / (1 - test_fraction)) if valid_fraction else (rest, [])
    return train, valid, test


def _cut(document: Document, tail_bytes: int) -> tuple[Document, Document]:
    """Head and tail of a document, the tail up to 3 bytes longer than asked for, lest a UTF-8 character be torn."""
    position = document.stop - tail_bytes
    first = max(document.start, position - 3)
    with open_text(document.path, first) as file:
        around = file.read(position - first + 1)
    # UTF-8 marks the bytes inside a character by their two top bits; back to the nearest byte that begins one.
    position -= next((back for back, byte in enumerate(reversed(around)) if byte & 0xC0 != 0x80), 0)
    return replace(document, stop=position), replace(document, start=position)
