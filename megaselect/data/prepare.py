"""From text files to what training reads: PREFIX.bin/.idx, PREFIX_valid.bin/.idx, PREFIX.model and PREFIX.json."""

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import sentencepiece

import megaselect
from megaselect.data.build import (
    DEFAULT_VALID_FRACTION,
    DEFAULT_VOCAB_SIZE,
    FORMAT_VERSION,
    BuildOptions,
    DatasetPaths,
    build,
)
from megaselect.data.corpus import default_corpus
from megaselect.data.documents import Document, sha256_of_manifest
from megaselect.data.json_lines import LineOptions
from megaselect.data.os_errors import explain_os_errors
from megaselect.data.progress import NoProgress, PrepareProgress
from megaselect.data.record import describe_replaced
from megaselect.data.survey import Survey, survey
from megaselect.data.tokenizer import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE, Tokenizer
from megaselect.data.user_text import TextFile, find_files
from megaselect.data.workspace import PreparationStopped, Workspace, open_workspace
from megaselect.errors import DataError


def prepare(
    inputs: list[Path],
    output_prefix: Path,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    valid_fraction: float = DEFAULT_VALID_FRACTION,
    *,
    test_fraction: float = 0.0,
    json_field: str = "text",
    json_files: str = "auto",
    workers: int = 1,
    progress: PrepareProgress | None = None,
) -> DatasetPaths:
    """Turn text files and directories of them into a dataset at `output_prefix`, in memory of bounded size.

    A file of JSON Lines has a document on every line, any other is one document; all may be compressed (.gz, .zst). The
    files are the same, byte for byte, for any number of workers. A call that is killed, or stopped by a full disk,
    leaves PREFIX.partial, and the same call goes on from there.

    vocab_size: of the tokenizer that is trained on the text (4096); with `tokenizer`, that model's own.
    valid_fraction, test_fraction: of the bytes of text files (see split_documents), and of the lines of .jsonl files;
    at least one document (see fill_splits). Without one of them there are no files of that split.
    json_field: of each line's object, the one that holds the text.
    json_files: how .json files are read, see file_kinds.file_kind.
    workers: processes. Where there are several, each imports the calling script: it must guard its work by
    `if __name__ == "__main__"`.
    Raises DataError for input that is missing, empty, binary, damaged or too short, and output that cannot be written.
    """
    progress = progress or NoProgress()
    lines = LineOptions(json_field, valid_fraction, test_fraction)
    options = BuildOptions(vocab_size, tokenizer, lines, num_workers=workers)
    _check(options)
    files, num_binary = find_files(inputs, json_field, json_files)
    with explain_os_errors(f"write {output_prefix}", "choose an output prefix in a directory that can be written"):
        output_prefix.parent.mkdir(parents=True, exist_ok=True)
        with open_workspace(output_prefix, _request(files, options), progress) as workspace:
            surveys = _surveys(workspace, files, progress)
            documents = [
                Document(file.name, file.path, 0, found.num_bytes, file.kind)
                for file, found in zip(files, surveys, strict=True)
            ]
            sha256 = sha256_of_manifest((found.sha256, file.name) for file, found in zip(files, surveys, strict=True))
            paths = DatasetPaths.at(output_prefix, sha256, _description(inputs, documents, num_binary))
            if replaced := describe_replaced(output_prefix, sha256, options.request()):
                progress.note(replaced)
            build(workspace, paths, documents, options, progress)
    return paths


def prepare_default_corpus(cache_dir: Path | None = None, vocab_size: int = DEFAULT_VOCAB_SIZE) -> DatasetPaths:
    """The default corpus as a dataset, built on first use in `cache_dir` ($MEGASELECT_CACHE or ~/.cache/megaselect).

    Any number of processes may call this at once: each that finds nothing builds aside, the first to finish wins, and
    all return the winner's files.
    """
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    corpus = default_corpus()
    home = cache_dir / f"stdlib-{corpus.sha256[:16]}-vocab{vocab_size}-format{FORMAT_VERSION}"
    paths = DatasetPaths.at(home / "corpus", corpus.sha256, corpus.description)
    if paths.record_path.is_file():
        return paths
    aside = home.with_name(f".{home.name}.{uuid.uuid4().hex}.partial")
    options = BuildOptions(vocab_size, num_threads=-1)
    with explain_os_errors(
        f"write the cache in {cache_dir}", "set data.cache_dir or $MEGASELECT_CACHE to another place"
    ):
        aside.mkdir(parents=True)
        try:
            aside_paths = DatasetPaths.at(aside / "corpus", corpus.sha256, corpus.description)
            with open_workspace(aside_paths.train_prefix, {}, NoProgress()) as workspace:
                build(workspace, aside_paths, corpus.documents, options, NoProgress())
            _rename_unless_there(aside, paths)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return paths


def default_cache_dir() -> Path:
    configured = os.environ.get("MEGASELECT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "megaselect"


def _check(options: BuildOptions) -> None:
    valid, test = options.lines.valid_fraction, options.lines.test_fraction
    if not 0 <= valid < 1:
        raise DataError(f"the validation fraction is {valid}; it must be 0 or more and less than 1")
    if not 0 <= test < 1 - valid:
        raise DataError(
            f"the test fraction is {test}; it must not be negative, and leave text for training beside the validation "
            f"fraction of {valid}"
        )
    if options.vocab_size is not None and not MIN_VOCAB_SIZE <= options.vocab_size <= MAX_VOCAB_SIZE:
        raise DataError(
            f"--vocab-size {options.vocab_size}: must be {MIN_VOCAB_SIZE} (the 256 bytes and two pieces of their own) "
            f"or more, at most {MAX_VOCAB_SIZE}"
        )
    if options.num_workers < 1:
        raise DataError(f"the number of workers is {options.num_workers}; it must be 1 or more")
    if options.tokenizer is not None:
        _check_tokenizer(options.tokenizer, options.vocab_size)


def _check_tokenizer(given: Path, vocab_size: int | None) -> None:
    given_size = Tokenizer(given).vocab_size
    if vocab_size not in (None, given_size):
        raise DataError(f"{given} has {given_size} pieces, not {vocab_size}; leave --vocab-size out beside --tokenizer")


def _request(files: list[TextFile], options: BuildOptions) -> dict[str, Any]:
    """What the result depends on, by names whose values an interrupted and a repeated call compare."""
    listing = hashlib.sha256()
    for file in files:
        status = file.path.stat()
        entry = (file.name, str(file.path.resolve()), file.kind, status.st_size, status.st_mtime_ns)
        listing.update(json.dumps(entry).encode())
    versions = (
        f"megaselect {megaselect.__version__}, format {FORMAT_VERSION}, sentencepiece {sentencepiece.__version__}"
    )
    return {"input": listing.hexdigest(), "version": versions, **options.request()}


def _surveys(workspace: Workspace, files: list[TextFile], progress: PrepareProgress) -> list[Survey]:
    def read_all() -> bytes:
        progress.stage("reading", sum(file.path.stat().st_size for file in files))
        with explain_os_errors("read the input", "make it readable and run the command again", PreparationStopped):
            return json.dumps([survey(file.path, progress.advance) for file in files]).encode()

    return [Survey(*found) for found in json.loads(workspace.remember("surveys.json", read_all))]


def _description(inputs: list[Path], documents: list[Document], num_binary: int) -> str:
    num_bytes = sum(document.num_bytes for document in documents)
    kinds = sorted(Counter(document.kind for document in documents).items())
    counts = ", ".join(f"{kind} files: {count}" for kind, count in kinds)
    passed_over = f"; binary files passed over: {num_binary}" if num_binary else ""
    return f"{', '.join(map(str, inputs))} ({counts}, bytes: {num_bytes:,}{passed_over})"


def _rename_unless_there(aside: Path, paths: DatasetPaths) -> None:
    try:
        aside.rename(paths.record_path.parent)
    except OSError:
        # Another process was first, and its files are as good as ours.
        if not paths.record_path.is_file():
            raise
