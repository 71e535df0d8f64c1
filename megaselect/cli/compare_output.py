"""What `megaselect compare` does before and after measuring, whatever it compares."""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.errors import ComparisonError

if TYPE_CHECKING:
    from megaselect.comparison.compare import Request
    from megaselect.config import LoggingConfig

DEFAULT_STEPS, DEFAULT_WARMUP_STEPS, DEFAULT_ROUNDS = 6, 2, 2


def check_reports(logging: LoggingConfig) -> None:
    """Whether what comes after the minutes of measuring can be done. Raises ModuleNotFoundError and ConfigError."""
    if importlib.util.find_spec("plotly") is None:
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
    from megaselect.report.wandb_connection import check_key

    check_key(logging.wandb)


def at_least(value: int, flag: str, least: int = 1, why: str = "") -> int:
    """The value. Raises ComparisonError where it is less."""
    if value < least:
        raise ComparisonError(f"{flag} {value}: must be at least {least}{why}")
    return value


def fresh_directory(name: str) -> str:
    """In runs/, by what is compared and the time."""
    return f"runs/compare-{name}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"


def compare_and_report(request: Request, logging: LoggingConfig, out: Path, as_json: bool) -> None:
    """Measure, and write and print what came of it. Raises ComparisonError."""
    from megaselect.comparison.compare import compare
    from megaselect.comparison.result import to_json, write_comparison
    from megaselect.report.compare_html import write_html
    from megaselect.report.compare_table import print_comparison
    from megaselect.report.stdout import stdout_console
    from megaselect.report.wandb_comparison import log_comparison
    from megaselect.report.wandb_environment import group_for, project_for

    _make_directory(out)
    comparison = compare(request, _show_progress)
    # Files first, then what is printed, then W&B, which may have to wait for a network.
    page = out / "compare.html"
    write_comparison(comparison, out / "compare.json")
    write_html(comparison, page)
    if as_json:
        print(to_json(comparison))
    else:
        print_comparison(comparison, stdout_console())
        print(f"written to {out}: compare.json, {page.name}")
    group = group_for(logging) or out.name
    log_comparison(
        comparison, logging.wandb, project_for(logging), group, out, lambda note: _show_progress(f"{note}\n"), page
    )


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / "compare.json"
        if not probe.exists():
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ComparisonError(f"cannot write to {out}: {error.strerror}; choose another --out") from error


def _show_progress(piece: str) -> None:
    print(piece, end="", file=sys.stderr, flush=True)
