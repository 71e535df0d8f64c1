"""Documents to a dataset: tokenizer, token files, record; made in a workspace, then put in their places."""

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from megaselect.data.documents import Cutter, Document
from megaselect.data.encoding import EncodedChunk, Encoder
from megaselect.data.fill_splits import fill_splits
from megaselect.data.indexed_dataset import token_dtype
from megaselect.data.json_lines import LineOptions
from megaselect.data.output import Output
from megaselect.data.pieces import CHUNK_BYTES, Division, Piece, cut_chunks, divide, sample_text
from megaselect.data.progress import PrepareProgress
from megaselect.data.record import read_record
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.data.workers import encode_in_order
from megaselect.data.workspace import RECORD, Workspace
from megaselect.errors import DataError
from megaselect.files import publish, write_atomically

# Part of the default cache's name: raise it when the same text would no longer give the same tokens.
FORMAT_VERSION = 3

DEFAULT_VOCAB_SIZE = 4096
DEFAULT_VALID_FRACTION = 0.05

# Training on more makes the tokenizer better by less than 1 % and takes a quarter of a second a megabyte.
_TOKENIZER_SAMPLE_BYTES = 4_000_000

# The most work that is lost when the process is killed.
_SAVE_SECONDS = 5.0

_MODEL = "tokenizer.model"


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
    def test_prefix(self) -> Path:
        """Of the test split. It and the validation split are there if they were asked for."""
        return Path(f"{self.train_prefix}_test")

    @property
    def record_path(self) -> Path:
        return Path(f"{self.train_prefix}.json")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """vocab_size: of the tokenizer that is trained, or None with `tokenizer`, a model file to use instead.

    num_workers: processes that encode. num_threads: of the encoding where it is done in this process.
    """

    vocab_size: int | None = None
    tokenizer: Path | None = None
    lines: LineOptions = field(default_factory=lambda: LineOptions(valid_fraction=DEFAULT_VALID_FRACTION))
    num_workers: int = 1
    num_threads: int = 1

    @property
    def splits(self) -> list[str]:
        fractions = {"valid": self.lines.valid_fraction, "test": self.lines.test_fraction}
        return ["train", *(split for split, fraction in fractions.items() if fraction)]

    def request(self) -> dict[str, Any]:
        """What the files depend on, beside the input."""
        given = None if self.tokenizer is None else hashlib.sha256(self.tokenizer.read_bytes()).hexdigest()
        lines = asdict(self.lines)
        return {"vocab_size": self.vocab_size, "tokenizer": given, "json_field": lines.pop("field"), **lines}


def build(
    workspace: Workspace,
    paths: DatasetPaths,
    documents: list[Document],
    options: BuildOptions,
    progress: PrepareProgress,
) -> None:
    """Make the files of `paths`, going on from what is in the workspace. Raises DataError and OSError."""
    if workspace.read(RECORD) is None:
        division = divide(documents, options.lines.valid_fraction, options.lines.test_fraction)
        division = fill_splits(division, options.splits, options.lines, paths.description)
        progress.stage("tokenizer", 0)
        workspace.remember(_MODEL, lambda: _tokenizer_model(division, options))
        tokenizer = Tokenizer(workspace.path / _MODEL)
        for document in (document for texts in division.texts.values() for document in texts):
            tokenizer.check_length(document.path, document.num_bytes)
        with Output(workspace, options.splits, token_dtype(tokenizer.vocab_size)) as output:
            _encode(workspace.path / _MODEL, division, tokenizer.cut, output, options, progress)
            if not all(output.totals(split).documents for split in options.splits):
                raise DataError(f"{paths.description}: the input changed while it was read; run the command again")
            output.write_indexes()
            record = _record(paths, documents, options, tokenizer, output)
        write_atomically(workspace.path / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    _publish(workspace, paths, options.splits)


def _tokenizer_model(division: Division, options: BuildOptions) -> bytes:
    if options.tokenizer is not None:
        return options.tokenizer.read_bytes()
    # A list, not the iterator: sentencepiece would report an error in the input as one of its own.
    sample = list(sample_text(division, options.lines, _TOKENIZER_SAMPLE_BYTES))
    return train_tokenizer(sample, options.vocab_size or DEFAULT_VOCAB_SIZE)


def _encode(
    model: Path, division: Division, cut: Cutter, output: Output, options: BuildOptions, progress: PrepareProgress
) -> None:
    progress.stage("tokens", division.num_bytes, output.num_bytes)
    if output.num_bytes:
        progress.note(f"Going on after {output.num_bytes:,} of {division.num_bytes:,} bytes, done by an earlier call.")
    chunks = islice(cut_chunks(division, cut), output.num_chunks, None)
    saved_at = time.monotonic()
    # Closed at once where an output cannot be written: processes should not go on for nobody.
    with closing(_encoded_chunks(chunks, model, division, options)) as results:
        for encoded in results:
            output.add(encoded)
            progress.advance(encoded.num_bytes)
            if time.monotonic() - saved_at >= _SAVE_SECONDS:
                output.save()
                saved_at = time.monotonic()
    output.save()


def _encoded_chunks(
    chunks: Iterator[list[Piece]], model: Path, division: Division, options: BuildOptions
) -> Generator[EncodedChunk, None, None]:
    # A process takes longer to start than a chunk to encode.
    num_workers = min(options.num_workers, -(-division.num_bytes // CHUNK_BYTES))
    if num_workers > 1:
        yield from encode_in_order(chunks, model, options.lines, num_workers)
    else:
        yield from map(Encoder(Tokenizer(model), options.lines, options.num_threads).encode, chunks)


def _record(
    paths: DatasetPaths, documents: list[Document], options: BuildOptions, tokenizer: Tokenizer, output: Output
) -> dict[str, Any]:
    def split_record(split: str) -> dict[str, Any]:
        kinds = {kind: asdict(counts) for kind, counts in sorted(output.counts[split].items())}
        return {**asdict(output.totals(split)), "kinds": kinds}

    return {
        "format_version": FORMAT_VERSION,
        "description": paths.description,
        "sha256": paths.sha256,
        "python_version": platform.python_version(),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "options": options.request(),
        "files": dict(sorted(Counter(document.kind for document in documents).items())),
        **{split: split_record(split) for split in options.splits},
    }


def _publish(workspace: Workspace, paths: DatasetPaths, splits: list[str]) -> None:
    """Put the files in their places. Killed anywhere, it can be called again.

    A reader must never pair an index with tokens of another dataset: while tokens are replaced there is no index.
    """
    prefixes = {"train": paths.train_prefix, "valid": paths.valid_prefix, "test": paths.test_prefix}
    for split in _earlier_splits(paths) - set(splits):
        _unlink(prefixes[split], ".idx", ".bin")
    waiting = [split for split in splits if (workspace.path / f"{split}.bin").exists()]
    for split in waiting:
        _unlink(prefixes[split], ".idx")
    moves = {workspace.path / f"{split}.bin": Path(f"{prefixes[split]}.bin") for split in waiting}
    moves[workspace.path / _MODEL] = paths.tokenizer_path
    moves |= {workspace.path / f"{split}.idx": Path(f"{prefixes[split]}.idx") for split in splits}
    for source, target in moves.items():
        if source.exists():
            source.replace(target)
    copy = workspace.path / "record.copy"
    copy.write_bytes((workspace.path / RECORD).read_bytes())
    publish(copy, paths.record_path)


def _earlier_splits(paths: DatasetPaths) -> set[str]:
    """The splits beside an earlier dataset's training tokens in this place: they would be taken for the new one's."""
    record = read_record(paths.train_prefix)
    return {"valid", "test"} & record.splits if record else set()


def _unlink(prefix: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        Path(f"{prefix}{suffix}").unlink(missing_ok=True)
