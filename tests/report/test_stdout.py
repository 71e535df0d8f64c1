"""What reports are printed with: no line ends in blanks, in a pipe or on a terminal, whatever rich fills it up with."""

import io
import re
from pathlib import Path

import pytest
from comparison_results import COMPARISON
from rich.console import Group
from rich.table import Table
from rich.text import Text

from megaselect.config import Config
from megaselect.estimation.estimate import estimate
from megaselect.report.compare_table import print_comparison
from megaselect.report.console import ConsoleSink
from megaselect.report.estimate_table import print_estimate
from megaselect.report.run_list import ListedRun
from megaselect.report.runs_table import print_runs
from megaselect.report.stdout import ReportConsole, stdout_console
from megaselect.report.verify_table import print_report
from megaselect.verification.report import Check, Outcome, Report, Subject

TINY = Path(__file__).parents[2] / "configs/tiny.yaml"
CHECKS = (Check("masks", Outcome.PASSED), Check("same bits", Outcome.FAILED, "one is off " * 20))
SUBJECTS = (Subject("none", "unfused", CHECKS), Subject("gelu", "fused", left_out="saves nothing here: reason"))
REPORTS = {
    "estimate": lambda console: print_estimate(estimate(Config.from_yaml(TINY), "h100-80gb"), console, "tiny"),
    "runs": lambda console: print_runs([ListedRun("runs/a"), ListedRun("runs/longer", setting="none")], console, 0.0),
    "verify": lambda console: print_report(Report(SUBJECTS, ("a note " * 20,)), ["same bits", "masks"], console),
    "compare": lambda console: print_comparison(COMPARISON, console),
}


def printed(console):
    """Lines without the codes for a terminal's colours and cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).split("\n")


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def console(request):
    return ReportConsole(file=io.StringIO(), force_terminal=request.param, width=80, color_system="standard")


@pytest.mark.parametrize("name", REPORTS)
def test_no_line_of_a_report_ends_in_blanks(console, name):
    REPORTS[name](console)
    lines = printed(console)
    assert len(lines) > 3
    assert lines == [line.rstrip() for line in lines]


def test_no_line_of_a_run_ends_in_blanks(console, header, report, metrics, summary):
    sink = ConsoleSink(log_interval=1, console=console)
    sink.start(header())
    sink.saved(report())
    sink.step(metrics(1, loss=None, grad_norm=None))
    sink.finish(summary(sample="def f():   \n\n\n    return 1   \n"))
    lines = [line for line in printed(console) if "━" not in line]  # the bar is drawn over and over
    assert any("def f():" in line for line in lines)
    assert lines == [line.rstrip() for line in lines]


def test_what_is_no_blank_at_a_lines_end_stays(console):
    table = Table.grid(padding=(0, 3))
    table.add_row("a", Text("b", "bold"), "")
    table.add_row("  c", "", "d")
    console.print(Group(table, Text("  \n e  f "), Text("g ", end=""), Text("h  ")))
    assert printed(console) == ["a     b", "  c       d", "", " e  f", "g h", ""]


def test_standard_output_is_printed_to_without_them(capsys):
    table = Table.grid()
    table.add_row("a", " " * 30)
    stdout_console().print(table)
    assert capsys.readouterr().out == "a\n"
