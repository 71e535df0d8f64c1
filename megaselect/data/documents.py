"""Documents: text files, or byte ranges of them, read as UTF-8 in blocks and split into training and validation."""

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

# Encoding time grows faster than a block's length, and a block is what a thread encodes: small, yet many words long.
BLOCK_BYTES = 16 * 1024

# How the surrogateescape handler spells a byte that is not UTF-8. Valid UTF-8 never decodes to these.
_UNDECODABLE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Document:
    """Bytes [start, stop) of one file. `name` is its path relative to the corpus, with forward slashes."""

    name: str
    path: Path
    start: int
    stop: int

    @classmethod
    def whole(cls, path: Path, name: str) -> "Document":
        return cls(name, path, 0, path.stat().st_size)

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


class TextBlock(NamedTuple):
    text: str
    replaced_bytes: int
    ends_document: bool


def read_blocks(document: Document) -> Iterator[TextBlock]:
    """Text of a document in blocks of BLOCK_BYTES to twice that, cut at line ends where lines are not longer.

    The blocks concatenate to the document. Bytes that are not UTF-8 become U+FFFD, one for each, and are counted.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with document.path.open("rb") as file:
        file.seek(document.start)
        left = document.num_bytes
        while left > 0:
            raw = file.read(min(BLOCK_BYTES, left))
            raw += file.readline(min(BLOCK_BYTES, left - len(raw)))
            # A file that shrank since it was listed ends here instead of looping for ever.
            left = left - len(raw) if raw else 0
            text, replaced = _UNDECODABLE.subn("\ufffd", decoder.decode(raw, final=left == 0))
            yield TextBlock(text, replaced, ends_document=left == 0)


def manifest_sha256(documents: Iterable[Document]) -> str:
    """SHA-256 of the lines that `sha256sum NAME…` prints for the documents' whole files: anyone can check it."""
    manifest = hashlib.sha256()
    for document in documents:
        with document.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        manifest.update(f"{content}  {document.name}\n".encode(errors="surrogateescape"))
    return manifest.hexdigest()


def split_documents(documents: list[Document], valid_fraction: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, about `valid_fraction` of the bytes in the latter, in the order given.

    Whole files go to validation, in the order of a hash of their names, as long as they fit. Where they come to less
    than half of what was asked for (one large file, say), the tail of the largest remaining file makes up the rest.
    """
    wanted = round(valid_fraction * sum(document.num_bytes for document in documents))
    left = wanted
    chosen = set()
    for document in sorted(documents, key=lambda document: hashlib.sha256(_name_bytes(document)).digest()):
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


def _name_bytes(document: Document) -> bytes:
    return document.name.encode(errors="surrogateescape")


def _cut(document: Document, tail_bytes: int) -> tuple[Document, Document]:
    """Head and tail of a document, the tail up to 3 bytes longer than asked for, lest a UTF-8 character be torn."""
    position = document.stop - tail_bytes
    with document.path.open("rb") as file:
        first = max(document.start, position - 3)
        file.seek(first)
        around = file.read(position - first + 1)
    # UTF-8 marks the bytes inside a character by their two top bits; back to the nearest byte that begins one.
    position -= next((back for back, byte in enumerate(reversed(around)) if byte & 0xC0 != 0x80), 0)
    return replace(document, stop=position), replace(document, start=position)
