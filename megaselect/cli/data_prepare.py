"""`megaselect data prepare`: turn text files into a dataset to train on."""

import argparse
import json
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Turn text files into a dataset to train on: train a tokenizer on them (or take yours), set part of the text apart for
validation, and write PREFIX.bin and .idx (training tokens), PREFIX_valid.bin and .idx (validation tokens),
PREFIX.model (the tokenizer) and PREFIX.json (what was written, from which text)."""

_EPILOG = """\
example:
  megaselect data prepare --input books/ notes.txt --output data/books
then train on it by setting data.prefix to data/books
"""


def add_prepare_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `prepare`. The parsed arguments carry `run`, to be called with them."""
    prepare = commands.add_parser(
        "prepare",
        help="turn text files into a dataset",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="text files in UTF-8, or directories of them; each file is one document",
    )
    prepare.add_argument(
        "--output", type=Path, required=True, metavar="PREFIX", help="where to write, without an extension"
    )
    prepare.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="pieces of the tokenizer that is trained (default: 4096, or those of --tokenizer)",
    )
    prepare.add_argument("--tokenizer", type=Path, metavar="FILE", help="a sentencepiece .model file to use instead")
    prepare.add_argument(
        "--valid-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="part of the text set apart for validation (default: %(default)s)",
    )
    prepare.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prepare the dataset and print what was written. Raises DataError."""
    from megaselect.data.prepare import prepare

    paths = prepare(args.input, args.output, args.vocab_size, args.tokenizer, args.valid_fraction)
    record = json.loads(paths.record_path.read_bytes())
    print(record["description"])
    for prefix, split in ((paths.train_prefix, "train"), (paths.valid_prefix, "valid")):
        print(_split_line(Path(f"{prefix}.bin"), record[split]))
    print(f"{paths.tokenizer_path}: {record['vocab_size']:,} pieces, {_size(paths.tokenizer_path)}")
    if replaced := record["train"]["replaced_bytes"] + record["valid"]["replaced_bytes"]:
        print(f"bytes that were not UTF-8, replaced by U+FFFD: {replaced:,}")
    print(f"sha256 of the text: {record['sha256']}")


def _split_line(path: Path, counts: dict[str, Any]) -> str:
    bytes_per_token = counts["bytes"] / counts["tokens"]
    documents = "1 document" if counts["documents"] == 1 else f"{counts['documents']:,} documents"
    return f"{path}: {documents}, {counts['tokens']:,} tokens, {bytes_per_token:.2f} bytes per token, {_size(path)}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"
