"""`megaselect evaluate`: the loss of a run's model on a split of its data, or on another dataset."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaselect.cli.flags import OneLineParser
from megaselect.errors import ConfigError

if TYPE_CHECKING:
    from megaselect.training.run_evaluation import EvaluationData, EvaluationResult
    from megaselect.training.trained_model import SavedModel

REFRESH_SECONDS, LINE_SECONDS = 0.1, 10.0

_DESCRIPTION = """\
Loss, perplexity and bits per byte of a run's model, without dropout, on a split
of the run's data or on another dataset. With the run's own micro-batch, dtype and
device, and --samples as training.eval_samples was, the loss is the one that the
run told, to the bit."""

_EPILOG = """\
Bits per byte are all of the loss, ends of documents included, by the bytes of
the text that was predicted.

examples:
  megaselect evaluate --run runs/mine --checkpoint best --split test
  megaselect evaluate --run runs/mine --data data/other --samples 1000 --json"""


def main(argv: Sequence[str], prog: str) -> int:
    """Print the result; 0."""
    options = _parser(prog).parse_args(argv)
    for name in ("samples", "micro_batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if options.data is not None and options.split is not None:
        raise ConfigError(
            f"--split {options.split} is of the run's own data, and --data {options.data} is read whole: give one of "
            "the two"
        )
    # After the flags: these imports bring torch, and --help and mistyped flags should not wait for it.
    from megaselect.training.run_evaluation import evaluate_run, other_dataset, own_split
    from megaselect.training.trained_model import load_saved_model

    saved = load_saved_model(options.run, options.checkpoint, options.device, options.dtype)
    data = own_split(saved, options.split or "valid") if options.data is None else other_dataset(saved, options.data)
    for note in (*saved.notes, *data.notes):
        print(note, file=sys.stderr)
    micro_batch_size = options.micro_batch_size or saved.config.training.micro_batch_size
    samples = min(options.samples or data.split.num_windows, data.split.num_windows)
    with _Progress(samples) as progress:
        result = evaluate_run(saved, data, samples, micro_batch_size, progress.show)
    _print(_described(saved, data, result, micro_batch_size), options.json)
    return 0


def _described(
    saved: SavedModel, data: EvaluationData, result: EvaluationResult, micro_batch_size: int
) -> dict[str, Any]:
    """The keys of --json. Others script against them: they stay."""
    from megaselect.training.events import finite

    weight = next(saved.model.parameters())
    return {
        "checkpoint": str(saved.checkpoint.path),
        "step": saved.checkpoint.saved.state.step,
        "data": data.name,
        "samples": result.samples,
        "samples_in_data": data.split.num_windows,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "loss": finite(result.loss),
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "device": weight.device.type,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "micro_batch_size": micro_batch_size,
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    text = "without a tokenizer" if found["bytes"] is None else f"{found['bytes']:,} bytes of text"
    rows = (
        ("checkpoint", found["checkpoint"]),
        ("data", found["data"]),
        ("samples", f"{found['samples']:,} of {found['samples_in_data']:,}: {found['tokens']:,} tokens, {text}"),
        ("computed", f"{found['device']}, {found['dtype']}, micro-batch {found['micro_batch_size']}"),
        ("loss", _number(found["loss"], ".6f")),
        ("perplexity", _number(found["perplexity"], ",.4g")),
        ("bits per byte", _number(found["bits_per_byte"], ".6f")),
    )
    for label, value in rows:
        print(f"{label:<13}  {value}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


class _Progress:
    """On standard error: a line that is drawn again on a terminal, a line now and then elsewhere."""

    def __init__(self, samples: int) -> None:
        self._samples, self._redraws = samples, sys.stderr.isatty()
        self._shown = self._started = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._redraws:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, done: int) -> None:
        """How many samples are done."""
        now = time.monotonic()
        if now - self._shown >= (REFRESH_SECONDS if self._redraws else LINE_SECONDS):
            self._shown = now
            line = f"{done:,} of {self._samples:,} samples"
            print(f"\r\x1b[K{line}" if self._redraws else line, end="" if self._redraws else "\n", file=sys.stderr)
            sys.stderr.flush()


def _parser(prog: str) -> OneLineParser:
    parser = OneLineParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Callable[..., Any] = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="run directory, or a checkpoint in one")
    add("--checkpoint", metavar="NAME", help="best, or step-N, of the run (default: the newest whole one)")
    add("--split", choices=("train", "valid", "test"), help="of the run's own data (default: valid)")
    add("--data", metavar="PREFIX", help="another indexed dataset, which is read whole, in file order")
    add("--samples", type=int, metavar="N", help="windows of model.seq_length tokens, from the first (default: all)")
    add("--micro-batch-size", type=int, metavar="N", help="samples per forward pass (default: the run's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU where there is one")
    add(
        "--dtype",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="what is computed in; auto: what the model was trained in",
    )
    add("--json", action="store_true", help="print the result as JSON")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser
