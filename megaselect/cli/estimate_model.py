"""`megaselect estimate --model`: what a model of anybody's saves for backward in every setting, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from megaselect.cli.flags import OneLineParser
from megaselect.cli.model_flags import factory_parser

_SETTINGS = ("none", "selective", "attention", "full")
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_DESCRIPTION = """\
Predict what a model of any make saves for backward in every setting of
megaselect.recompute, and what training holds besides. The model is made and run
without values: it needs no memory, whatever its size.

--model takes package.module:function, a function without arguments that returns
an nn.Module, or a module and its batch; or a directory with a config.json of
transformers. A batch is a tensor, a tuple of arguments or a dictionary of keyword
arguments; a model without one whose config has a vocabulary gets random input_ids
and labels."""


def main(argv: Sequence[str], prog: str) -> int:
    """Print the estimate; 0. Raises MegaselectError."""
    options = _parser(prog).parse_args(argv)
    # After the flags: these imports bring torch, and --help and mistyped flags should not wait for it.
    import torch

    from megaselect.estimation.any_model import Choices, as_data, estimate_model

    def dtype_of(name: str | None) -> torch.dtype | None:
        return getattr(torch, _DTYPES[name]) if name else None

    choices = Choices(
        dtype=dtype_of(options.dtype),
        autocast=dtype_of(options.autocast),
        batch_size=options.batch_size,
        seq_length=options.seq_length,
        optimizer=options.optimizer,
        measure=options.measure,
    )
    if options.json:
        estimate = estimate_model(options.model, choices)
        print(json.dumps(as_data(estimate, [options.rows] if options.rows else []), indent=2))
        return 0
    from megaselect.report.model_estimate_table import print_model_estimate
    from megaselect.report.stdout import stdout_console

    console = stdout_console()
    with console.status("making the model") as status:
        estimate = estimate_model(options.model, choices, lambda setting: status.update(f"predicting {setting}"))
    print_model_estimate(estimate, console, options.rows)
    return 0


def _parser(prog: str) -> OneLineParser:
    parser = factory_parser(prog, _DESCRIPTION)
    parser.add_argument(
        "--optimizer",
        choices=("adamw", "torch-adamw", "none"),
        default="adamw",
        help="adamw: fp32 moments, and fp32 master weights of 16-bit ones; torch-adamw: moments in the weights' dtype "
        "(default: %(default)s)",
    )
    parser.add_argument("--rows", choices=_SETTINGS, metavar="SETTING", help="list what this setting saves")
    parser.add_argument(
        "--measure", action="store_true", help="where the model does not run without values, run it with them"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
