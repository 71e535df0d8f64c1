import io
import re
import sys

import pytest

from megaselect.cli import data_progress
from megaselect.cli.data_progress import ProgressDisplay


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(data_progress, "time", clock)
    return clock


def test_a_log_has_a_line_every_ten_seconds(clock, capsys):
    with ProgressDisplay() as display:
        display.stage("reading", 500_000_000)
        for _ in range(39):
            clock.now += 0.25
            display.advance(1_000_000)
        assert capsys.readouterr().out == ""
        clock.now += 5
        display.stage("tokenizer", 0)
        clock.now += 5
        display.stage("tokens", 2_000_000_000, 1_000_000_000)
        for _ in range(96):
            clock.now += 0.25
            display.advance(2_500_000)
        display.note("A sentence " + "of many words " * 8)
    assert capsys.readouterr().out.splitlines() == [
        "training the tokenizer ...",
        "encoding: 52.5% of 2,000 MB, 10.0 MB/s, 0:01:35 left",
        "encoding: 57.5% of 2,000 MB, 10.0 MB/s, 0:01:25 left",
        "A sentence of many words of many words of many words of many words of many words",
        "of many words of many words of many words",
    ]


def test_short_work_prints_nothing(clock, capsys):
    with ProgressDisplay() as display:
        display.stage("tokens", 1000)
        clock.now += 9
        display.advance(1000)
    assert capsys.readouterr().out == ""


def test_a_terminal_has_a_bar_that_fits_and_goes_away(clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with ProgressDisplay() as display:
        display.stage("tokenizer", 0)
        display.stage("tokens", 10_000_000_000)
        for _ in range(30):
            clock.now += 0.05
            display.advance(100_000_000)
        display.note("A note.")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    bars = [line for line in lines if line.startswith("encoding ")]
    assert 10 <= len(bars) <= 20
    assert "3.0/10.0 GB" in bars[-1]
    assert max(map(len, lines)) <= 80
    assert "A note." in lines
    assert terminal.getvalue().endswith("\x1b[2K")
