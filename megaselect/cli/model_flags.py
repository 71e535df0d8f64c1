"""The flags that commands share which take a model of anybody's."""

from __future__ import annotations

import argparse

from megaselect.cli.flags import OneLineParser, at_least_one


def factory_parser(prog: str, description: str) -> OneLineParser:
    """With --model, and what says how it is made and how large its batch is."""
    parser = OneLineParser(
        prog=prog,
        usage="%(prog)s --model FACTORY [flags]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="FACTORY", help="package.module:function, or a directory")
    parser.add_argument("--batch-size", type=at_least_one, metavar="N", help="samples of a token batch (default: 1)")
    parser.add_argument(
        "--seq-length",
        type=at_least_one,
        metavar="N",
        help="tokens of a sample (default: as many as the config allows, 2048 at most)",
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="torch's default as the model is made (default: fp32)"
    )
    parser.add_argument("--autocast", choices=("bf16", "fp16"), help="run under torch.autocast in this dtype")
    return parser
