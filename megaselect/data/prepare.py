"""From text files to what training reads: PREFIX.bin/.idx, PREFIX_valid.bin/.idx, PREFIX.model and PREFIX.json."""

import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from megaselect.data.corpus import default_corpus
from megaselect.data.documents import Document, TextBlock, manifest_sha256, read_blocks, split_documents
from megaselect.data.files import explain_os_errors, write_atomically
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.data.user_text import collect_documents
from megaselect.errors import DataError

DEFAULT_VOCAB_SIZE = 4096
DEFAULT_VALID_FRACTION = 0.05

# Part of the cache's name: raise it when the same text would no longer give the same files.
_FORMAT_VERSION = 2

# Training on more makes the tokenizer better by less than 1 % and takes a quarter of a second a megabyte.
_TOKENIZER_SAMPLE_BYTES = 4_000_000
_BLOCKS_PER_BATCH = 64

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class DatasetPaths:
    """A prepared dataset: prefixes as IndexedDataset takes them, and the SHA-256 of its text (see manifest_sha256)."""

    train_prefix: Path
    valid_prefix: Path
    tokenizer_path: Path
    sha256: str
    description: str

    @classmethod
    def at(cls, prefix: Path, sha256: str, description: str) -> "DatasetPaths":
        return cls(prefix, Path(f"{prefix}_valid"), Path(f"{prefix}.model"), sha256, description)

    @property
    def record_path(self) -> Path:
        return Path(f"{self.train_prefix}.json")


@dataclass(frozen=True, slots=True)
class SplitCounts:
    documents: int
    bytes: int
    tokens: int
    replaced_bytes: int


def prepare(
    inputs: list[Path],
    output_prefix: Path,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    valid_fraction: float = DEFAULT_VALID_FRACTION,
) -> DatasetPaths:
    """Turn text files and directories of them, each file one document, into a dataset at `output_prefix`.

    vocab_size: of the tokenizer that is trained on the text (4096); with `tokenizer`, that model's own.
    valid_fraction: of the bytes, see split_documents.
    Raises DataError for input that is missing, empty, binary or too short, and output that cannot be written.
    """
    if not 0 < valid_fraction < 1:
        raise DataError(f"the validation fraction is {valid_fraction}; it must lie between 0 and 1, such as 0.05")
    documents, num_binary = collect_documents(inputs)
    num_bytes = sum(document.num_bytes for document in documents)
    passed_over = f"; binary files passed over: {num_binary}" if num_binary else ""
    description = f"{', '.join(map(str, inputs))} (text files: {len(documents)}, bytes: {num_bytes:,}{passed_over})"
    paths = DatasetPaths.at(output_prefix, manifest_sha256(documents), description)
    with explain_os_errors(f"write {output_prefix}", "choose an output prefix in a directory that can be written"):
        output_prefix.parent.mkdir(parents=True, exist_ok=True)
        _build(paths, documents, vocab_size, tokenizer, valid_fraction)
    return paths


def prepare_default_corpus(cache_dir: Path | None = None, vocab_size: int = DEFAULT_VOCAB_SIZE) -> DatasetPaths:
    """The default corpus as a dataset, built on first use in `cache_dir` ($MEGASELECT_CACHE or ~/.cache/megaselect).

    Any number of processes may call this at once: each that finds nothing builds aside, the first to finish wins, and
    all return the winner's files.
    """
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    corpus = default_corpus()
    home = cache_dir / f"stdlib-{corpus.sha256[:16]}-vocab{vocab_size}-format{_FORMAT_VERSION}"
    paths = DatasetPaths.at(home / "corpus", corpus.sha256, corpus.description)
    if paths.record_path.is_file():
        return paths
    aside = home.with_name(f".{home.name}.{uuid.uuid4().hex}.partial")
    with explain_os_errors(
        f"write the cache in {cache_dir}", "set data.cache_dir or $MEGASELECT_CACHE to another place"
    ):
        aside.mkdir(parents=True)
        try:
            aside_paths = DatasetPaths.at(aside / "corpus", corpus.sha256, corpus.description)
            _build(aside_paths, corpus.documents, vocab_size, None, DEFAULT_VALID_FRACTION)
            _rename_unless_there(aside, paths)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return paths


def default_cache_dir() -> Path:
    configured = os.environ.get("MEGASELECT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "megaselect"


def _rename_unless_there(aside: Path, paths: DatasetPaths) -> None:
    try:
        aside.rename(paths.record_path.parent)
    except OSError:
        # Another process was first, and its files are as good as ours.
        if not paths.record_path.is_file():
            raise


def _build(
    paths: DatasetPaths, documents: list[Document], vocab_size: int | None, given: Path | None, valid_fraction: float
) -> None:
    train, valid = split_documents(documents, valid_fraction)
    if not train or not valid:
        raise DataError(
            f"{paths.description}: too little text to set {valid_fraction:.1%} apart for validation; "
            "add text or change the fraction"
        )
    model = _tokenizer_model(train, vocab_size, given)
    write_atomically(paths.tokenizer_path, model)
    tokenizer = Tokenizer(paths.tokenizer_path)
    record = {
        "format_version": _FORMAT_VERSION,
        "description": paths.description,
        "sha256": paths.sha256,
        "python_version": platform.python_version(),
        "vocab_size": tokenizer.vocab_size,
        "train": asdict(_write_split(paths.train_prefix, train, tokenizer)),
        "valid": asdict(_write_split(paths.valid_prefix, valid, tokenizer)),
    }
    write_atomically(paths.record_path, (json.dumps(record, indent=2) + "\n").encode())


def _tokenizer_model(documents: list[Document], vocab_size: int | None, given: Path | None) -> bytes:
    if given is None:
        return train_tokenizer(_sample(documents), vocab_size or DEFAULT_VOCAB_SIZE)
    given_size = Tokenizer(given).vocab_size
    if vocab_size not in (None, given_size):
        raise DataError(f"{given} has {given_size} pieces, not {vocab_size}; leave --vocab-size out beside --tokenizer")
    return given.read_bytes()


def _sample(documents: list[Document]) -> Iterator[str]:
    """Every k-th block, spread evenly over the documents, such that no more than the sample's size is used."""
    num_bytes = sum(document.num_bytes for document in documents)
    stride = -(-num_bytes // _TOKENIZER_SAMPLE_BYTES)
    return (block.text for block in islice(_all_blocks(documents), 0, None, stride))


def _write_split(prefix: Path, documents: list[Document], tokenizer: Tokenizer) -> SplitCounts:
    num_tokens = replaced_bytes = 0
    with IndexedDatasetWriter(prefix, tokenizer.vocab_size) as writer:
        for blocks in _batches(_all_blocks(documents), _BLOCKS_PER_BATCH):
            for block, ids in zip(blocks, tokenizer.encode_batch([block.text for block in blocks]), strict=True):
                if block.ends_document:
                    ids.append(tokenizer.end_of_document_id)
                writer.extend(ids)
                if block.ends_document:
                    writer.end_document()
                num_tokens += len(ids)
                replaced_bytes += block.replaced_bytes
    num_bytes = sum(document.num_bytes for document in documents)
    return SplitCounts(len(documents), num_bytes, num_tokens, replaced_bytes)


def _all_blocks(documents: Iterable[Document]) -> Iterator[TextBlock]:
    return chain.from_iterable(map(read_blocks, documents))


def _batches(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    while batch := list(islice(items, size)):
        yield batch
