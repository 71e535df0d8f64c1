"""`megaselect data prepare`: turn text files into a dataset to train on."""

import argparse
import json
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megaselect.data.prepare import DatasetPaths

_DESCRIPTION = """\
Turn text files into a dataset to train on: train a tokenizer on them (or take
yours), set part of the text apart for validation, and write PREFIX.bin and
.idx (training tokens), PREFIX_valid.bin and .idx (validation tokens),
PREFIX.model (the tokenizer) and PREFIX.json (what was written, from which
text). With --test-fraction also PREFIX_test.bin and .idx.

Memory use does not grow with the text. The files are the same, byte for byte,
for any number of workers. A command that was interrupted goes on from where it
was when it is given again; until it is done, its work lies in PREFIX.partial."""

_EPILOG = """\
example:
  megaselect data prepare --input books/ notes.jsonl.zst --output data/books
then train on it by setting data.prefix to data/books
"""

_COLUMNS = 80


def add_prepare_parser(commands: Any) -> None:
    """Add `prepare`. The parsed arguments carry `run`, to be called with them."""
    prepare = commands.add_parser(
        "prepare",
        help="turn text files into a dataset",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_files(prepare)
    _add_settings(prepare)
    prepare.set_defaults(run=run)


def _add_files(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument(
        "--input",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="text files in UTF-8, each one document; JSON Lines (.jsonl), each line one document; either as .gz or "
        ".zst; or directories of them",
    )
    prepare.add_argument(
        "--output", type=Path, required=True, metavar="PREFIX", help="where to write, without an extension"
    )
    prepare.add_argument("--tokenizer", type=Path, metavar="FILE", help="a sentencepiece .model file to use instead")


def _add_settings(prepare: argparse.ArgumentParser) -> None:
    prepare.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="pieces of the tokenizer that is trained (default: 4096, or those of --tokenizer)",
    )
    prepare.add_argument(
        "--valid-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="part of the text set apart for validation (default: %(default)s; 0: none)",
    )
    prepare.add_argument(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="part of the text set apart for a test (default: none)",
    )
    prepare.add_argument(
        "--json-field",
        default="text",
        metavar="NAME",
        help="field of a .jsonl line that holds the text (default: %(default)s)",
    )
    prepare.add_argument(
        "--json-files",
        choices=("auto", "lines", "text"),
        default="auto",
        help="what .json files are: a document on every line, or text; auto: lines, or refused (default: %(default)s)",
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="processes that encode (default: one for each core)")


def run(args: argparse.Namespace) -> None:
    """Prepare the dataset and print what was written. Raises DataError."""
    from megaselect.cli.data_progress import ProgressDisplay
    from megaselect.data.prepare import prepare

    with ProgressDisplay() as display:
        paths = prepare(
            args.input,
            args.output,
            args.vocab_size,
            args.tokenizer,
            args.valid_fraction,
            test_fraction=args.test_fraction,
            json_field=args.json_field,
            json_files=args.json_files,
            workers=_num_cores() if args.workers is None else args.workers,
            progress=display,
        )
    for line in _report(paths, json.loads(paths.record_path.read_bytes())):
        print(line)


def _num_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(paths: "DatasetPaths", record: dict[str, Any]) -> list[str]:
    prefixes = {"train": paths.train_prefix, "valid": paths.valid_prefix, "test": paths.test_prefix}
    rows: list[tuple[str, ...]] = [("split", "documents", "tokens", "bytes/token", "file")]
    counts = {split: record[split] for split in prefixes if split in record}
    for split, count in counts.items():
        numbers = (f"{count['documents']:,}", f"{count['tokens']:,}", f"{count['bytes'] / count['tokens']:.2f}")
        rows.append((split, *numbers, f"{prefixes[split]}.bin"))
    lines = textwrap.wrap(record["description"], _COLUMNS, break_long_words=False, break_on_hyphens=False)
    lines += [f"sha256: {record['sha256']}", *_table(rows)]
    lines.append(f"tokenizer: {paths.tokenizer_path}, {record['vocab_size']:,} pieces")
    for name, what in (
        ("replaced_bytes", "bytes that were not UTF-8, replaced by U+FFFD"),
        ("replaced_surrogates", "halves of surrogate pairs, replaced by U+FFFD"),
        ("empty_documents", "documents without text, passed over"),
        ("null_documents", "documents whose text is null, passed over"),
        ("seamless_cuts", "places in documents where tokens may be others, cut where nothing parts the text"),
    ):
        if total := sum(count[name] for count in counts.values()):
            lines.append(f"{what}: {total:,}")
    return lines


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, file in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join((name.ljust(widths[0]), *cells, file)))
    return lines
