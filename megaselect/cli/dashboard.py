"""`megaselect dashboard`: the workspace and the report that show a project's runs beside each other."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megaselect.cli.flags import OneLineParser
from megaselect.errors import ConfigError

DEFAULT_FILE = Path("megaselect-dashboard.json")

_DESCRIPTION = """\
Save a workspace and a report in Weights & Biases that compare the runs of
`megaselect compare` and of `megaselect train --logging.wandb-group GROUP`:
losses, memory, throughput, step time and the headline table.

Without an API key, or where no server answers, the specification of both is
written to a file; the same command saves them once there is a key. It never
asks for one."""


def main(argv: Sequence[str], prog: str) -> int:
    """Save the dashboard and say where it is."""
    arguments = _parser(prog).parse_args(argv)
    for name in ("entity", "project", "group"):
        if getattr(arguments, name) == "":
            raise ConfigError(f"--{name} '': must not be empty; name one, or leave the flag out")
    # After the flags: --help and mistyped flags should not wait for it.
    from megaselect.config import LoggingConfig
    from megaselect.report.wandb_dashboard_save import save_dashboard
    from megaselect.report.wandb_environment import project_for

    project = arguments.project or project_for(LoggingConfig())
    file = arguments.out or DEFAULT_FILE
    saved = save_dashboard(arguments.entity, project, arguments.group, file, local=arguments.out is not None)
    if arguments.json:
        print(json.dumps({name: value for name, value in asdict(saved).items() if value is not None}))
    elif saved.specification:
        because = f" ({saved.because})" if saved.because else ""
        again = "the same command" + (" without --out" if arguments.out else "")
        print(
            f"dashboard: wrote its specification to {saved.specification}{because}; "
            f"to save it online: {again}, with an API key and a server in reach"
        )
    else:
        print(f"workspace: {saved.workspace}\nreport: {saved.report}")
    return 0


def _parser(prog: str) -> OneLineParser:
    parser = OneLineParser(
        prog=prog,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--entity", metavar="NAME", help="user or team that owns the project (default: the key's own)")
    parser.add_argument("--project", metavar="NAME", help="project of the runs (default: megaselect, as in training)")
    parser.add_argument("--group", metavar="NAME", help="show this group of runs alone (default: all groups)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the specification, and ask no server")
    parser.add_argument("--json", action="store_true", help="print where it went as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
