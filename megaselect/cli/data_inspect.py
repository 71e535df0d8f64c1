"""`megaselect data inspect`: what is in a dataset, ours or Megatron-LM's."""

import argparse
import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaselect.errors import ConfigError

if TYPE_CHECKING:
    from megaselect.data.inspection import Inspection, Sample

_DESCRIPTION = """\
Show what is in a dataset: PREFIX.bin and PREFIX.idx, as `megaselect data
prepare` or Megatron-LM's preprocess_data.py wrote them. All of it is read."""

_COLUMNS = 80
_BAR_COLUMNS = 30
_SAMPLE_LINES = 3


def add_inspect_parser(commands: Any) -> None:
    """Add `inspect`. The parsed arguments carry `run`, to be called with them."""
    inspect = commands.add_parser(
        "inspect",
        help="show what is in a dataset",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument(
        "prefix", metavar="PREFIX", help="the common prefix of a .bin and an .idx file, or one of them"
    )
    inspect.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="sentencepiece .model file (default: PREFIX.model, if there)"
    )
    inspect.add_argument(
        "--samples", type=int, default=3, metavar="N", help="documents whose start is shown (default: %(default)s)"
    )
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    inspect.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the inspection. Raises DataError."""
    if args.samples < 0:
        raise ConfigError(f"--samples {args.samples}: must be 0 or more")
    from megaselect.data.indexed_dataset import dataset_prefix
    from megaselect.data.inspection import inspect_dataset

    inspection = inspect_dataset(dataset_prefix(args.prefix), args.samples, args.tokenizer)
    if args.json:
        print(json.dumps(asdict(inspection), indent=2))
    else:
        print("\n".join(inspection_lines(inspection)))


def inspection_lines(inspection: "Inspection") -> Iterator[str]:
    """The inspection for a terminal of 80 columns; only checksums and long file names need more."""
    lengths, ending = inspection.lengths, inspection.end_of_document
    rows = {
        "documents": f"{inspection.documents:,}",
        "sequences": f"{inspection.sequences:,}",
        "tokens": f"{inspection.tokens:,} of {inspection.dtype}, ids {inspection.lowest_id:,} to "
        f"{inspection.highest_id:,}",
        "tokenizer": _tokenizer(inspection),
        "documents' ends": f"token {ending.token:,}: the last of {ending.documents_ended:,} documents, "
        f"{ending.share_of_tokens:.3%} of tokens",
        "tokens each": f"at least {lengths.min:,}, median {lengths.median:,.0f}, at most {lengths.max:,}",
    }
    yield inspection.prefix
    if inspection.problem:
        yield f"warning: {inspection.problem}"
    for label, value in rows.items():
        yield f"  {label:<15}  {value}"
    yield from _histogram(inspection)
    for facts in inspection.files:
        yield f"{facts.path}: {facts.bytes:,} bytes, sha256"
        yield f"  {facts.sha256}"
    for sample in inspection.samples:
        yield from _sample(sample)


def _tokenizer(inspection: "Inspection") -> str:
    if inspection.tokenizer is None:
        return "none; --tokenizer names one"
    return f"{inspection.tokenizer}, {inspection.tokenizer_vocab_size:,} pieces"


def _histogram(inspection: "Inspection") -> Iterator[str]:
    ranges = inspection.lengths.histogram
    largest = max(each.documents for each in ranges)
    labels = [f"{each.least:,}" if each.least == each.most else f"{each.least:,} to {each.most:,}" for each in ranges]
    width = max(map(len, labels))
    for label, each in zip(labels, ranges, strict=True):
        bar = "#" * max(1, round(_BAR_COLUMNS * each.documents / largest))
        yield f"    {label:>{width}}  {bar:<{_BAR_COLUMNS}}  {each.documents:,}"


def _sample(sample: "Sample") -> Iterator[str]:
    """A sample's heading and text. Control characters are spelt out: they would act on the terminal."""
    yield f"document {sample.document:,}, its first {len(sample.ids)} tokens:"
    if sample.text is None:
        shown = " ".join(map(str, sample.ids))
        yield from textwrap.wrap(shown, _COLUMNS, initial_indent="  ", subsequent_indent="  ")[:_SAMPLE_LINES]
        return
    from rich.cells import chop_cells

    spelt = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sample.text)
    for line in chop_cells(spelt, _COLUMNS - 2)[:_SAMPLE_LINES]:
        yield f"  {line}".rstrip()
