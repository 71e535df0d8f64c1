"""`megaselect estimate`: what every recompute setting of a config costs and buys, without running it. No torch."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.flags import CommandFlags, at_least_one, parse_run_args
from megaselect.prediction.parallel import Parallel
from megaselect.units import size_notes

_DESCRIPTION = """\
Predict, from the config alone, what every recompute setting keeps, its peak, its
FLOPs and the largest micro-batch that fits. Nothing is run."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("estimate")
    group.add_argument(
        "--model",
        metavar="FACTORY",
        help="another model, without a config of ours: package.module:function, or a directory with a config.json of "
        "transformers; `megaselect estimate --model FACTORY --help` lists its flags",
    )
    group.add_argument(
        "--device",
        metavar="NAME",
        help="a GPU of the table, such as h100-80gb, a100-40gb or rtx4090-24gb; cpu; or auto, the one that is here "
        "(default: the config's training.device)",
    )
    group.add_argument("--memory", metavar="SIZE", help="what a step may hold, such as 24GiB, instead of the device's")
    group.add_argument(
        "--gpus",
        metavar="N",
        type=at_least_one,
        help="devices in all, which share as --parallel.sharding says (default: 1)",
    )
    group.add_argument("--tensor-parallel", metavar="N", type=at_least_one, help="ranks that share each layer")
    group.add_argument(
        "--sequence-parallel", action="store_true", help="those ranks share what lies between the products too"
    )
    group.add_argument("--pipeline-parallel", metavar="N", type=at_least_one, help="pipeline stages")
    group.add_argument("--virtual-stages", metavar="N", type=at_least_one, help="interleaved model chunks a stage")
    group.add_argument("--json", action="store_true", help="print everything as JSON")


def main(argv: Sequence[str], prog: str) -> int:
    """Print the estimate; 0."""
    if any(argument == "--model" or argument.startswith("--model=") for argument in argv):
        return importlib.import_module("megaselect.cli.estimate_model").main(argv, prog)  # by name: it loads torch
    usage = "%(prog)s [--config FILE] [--device NAME] [flags]"
    flags = CommandFlags(prog, usage, _DESCRIPTION, SETTINGS_OF_COMMAND["estimate"], _add_options)
    command = parse_run_args(argv, flags)
    from megaselect.estimation.estimate import estimate
    from megaselect.training.data_choice import follow_vocabulary

    options = command.options
    device, memory = getattr(options, "device", None), getattr(options, "memory", None)
    config, _ = follow_vocabulary(command.config)
    predicted = estimate(config, device, memory, _parallel(options))
    if hasattr(options, "json"):
        from megaselect.estimation.as_data import as_data

        print(json.dumps(as_data(predicted), indent=2))
        return 0
    from megaselect.report.estimate_table import print_estimate
    from megaselect.report.stdout import stdout_console

    console = stdout_console()
    for note in [*command.notes, *(size_notes(memory, "--memory") if memory else [])]:
        console.print(note, markup=False, highlight=False)
    print_estimate(predicted, console, command.config_path.stem)
    return 0


def _parallel(options: argparse.Namespace) -> Parallel:
    """The layout; --gpus is as many as the model needs where it is not given."""
    tensor, pipeline = getattr(options, "tensor_parallel", 1), getattr(options, "pipeline_parallel", 1)
    return Parallel(
        gpus=getattr(options, "gpus", tensor * pipeline),
        tensor=tensor,
        sequence=hasattr(options, "sequence_parallel"),
        pipeline=pipeline,
        virtual_stages=getattr(options, "virtual_stages", 1),
    )
