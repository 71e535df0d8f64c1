"""`megaselect sample`: text that a trained model writes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.cli.flags import OneLineParser
from megaselect.errors import ConfigError
from megaselect.report.text import without_controls

if TYPE_CHECKING:
    from megaselect.data.tokenizer import Tokenizer
    from megaselect.training.decoding import Decoder
    from megaselect.training.sampling import SamplingSettings
    from megaselect.training.trained_model import TrainedModel

_DESCRIPTION = """\
Let a trained model go on from a prompt, or write from the start of a document
where there is none. The text goes to standard output as it comes, with the
prompt before it; notes go to standard error. The same seed gives the same text."""

_NUMBERS = (
    ("--tokens", int, 200, "N", "tokens of each sample"),
    ("--num-samples", int, 1, "N", "samples to write, each with the next seed"),
    (
        "--temperature",
        float,
        0.8,
        "T",
        "below 1 likely tokens come more often, above 1 less; 0: the likeliest",
    ),
    ("--top-k", int, 40, "K", "draw from the K likeliest tokens alone; 0: from all"),
    ("--seed", int, 1234, "N", "what the draws are a function of"),
)

_EPILOG = """\
examples:
  megaselect sample --run runs/mine --prompt "def main():"
  megaselect sample --run runs/mine --checkpoint best --temperature 0 --stop
  cat start.txt | megaselect sample --run runs/mine --prompt-file -"""


def main(argv: Sequence[str], prog: str) -> int:
    """Print the samples; 0."""
    options = _parser(prog).parse_args(argv)
    prompt = _prompt(options.prompt, options.prompt_file)
    if options.tokens < 1 or options.num_samples < 1:
        name, value = ("tokens", options.tokens) if options.tokens < 1 else ("num-samples", options.num_samples)
        raise ConfigError(f"--{name} {value}: must be at least 1")
    if not 0 <= options.seed < 2**64:
        raise ConfigError(f"--seed {options.seed}: must be 0 or more, and less than 2^64")
    # After the flags: these imports bring torch, and --help and mistyped flags should not wait for it.
    from megaselect.training.sampling import SamplingSettings
    from megaselect.training.trained_model import load_trained_model

    settings = SamplingSettings(options.temperature, options.top_k or None, options.top_p)
    trained = load_trained_model(options.run, options.checkpoint, options.device, options.tokenizer)
    for note in trained.notes:
        _say(note)
    _print_samples(trained, prompt, settings, options)
    return 0


def _print_samples(trained: TrainedModel, prompt: str, settings: SamplingSettings, options: argparse.Namespace) -> None:
    from megaselect.training.decoding import Decoder

    decoder = Decoder(trained.model, trained.tokenizer.vocab_size)
    ids = [trained.tokenizer.end_of_document_id, *trained.tokenizer.encode(prompt)]
    room = trained.model.config.seq_length
    if len(ids) > room:
        _say(f"note: the prompt has {len(ids):,} tokens, and the model sees the last {room:,} of them")
    started, count = time.perf_counter(), 0
    for number in range(options.num_samples):
        if number:
            print(f"--- {number + 1} of {options.num_samples} ---")
        _write(prompt)
        count += _print_sample(decoder, trained.tokenizer, ids, settings, options, (options.seed + number) % 2**64)
    rate = count / (time.perf_counter() - started)
    _say(f"{trained.checkpoint}: {count:,} tokens, {rate:,.0f} a second")


def _print_sample(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: list[int],
    settings: SamplingSettings,
    options: argparse.Namespace,
    seed: int,
) -> int:
    """How many tokens it has."""
    from megaselect.training.sampling import draw_tokens
    from megaselect.training.text_stream import TextStream

    stream, count = TextStream(tokenizer, prompt), 0
    for token in islice(draw_tokens(decoder.next_logits, prompt, settings, seed), options.tokens):
        if options.stop and token == tokenizer.end_of_document_id:
            break
        count += 1
        _write(stream.add(token))
    _write(stream.rest() + "\n")
    return count


def _write(text: str) -> None:
    """As it is to a file or a pipe. A terminal would obey what a model writes."""
    sys.stdout.write(without_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _prompt(text: str | None, file: str | None) -> str:
    """Raises ConfigError where it cannot be read as text."""
    if file is None:
        content, source = os.fsencode(text or ""), "--prompt"
    else:
        source = f"--prompt-file {file}"
        try:
            content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: byte {error.start} is not UTF-8; give text in UTF-8") from None


def _parser(prog: str) -> OneLineParser:
    parser = OneLineParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory, or a checkpoint in one")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="best, or step-N, of the run (default: the newest whole one)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--prompt", metavar="TEXT", help="text to go on from (default: the start of a document)")
    start.add_argument("--prompt-file", metavar="FILE", help="file that holds it; -: standard input")
    for flag, kind, default, metavar, what in _NUMBERS:
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{what} (default: %(default)s)")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest that reach P in sum alone")
    parser.add_argument("--stop", action="store_true", help="end where the model ends the document")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer model file (default: the data's own)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU where there is one"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
