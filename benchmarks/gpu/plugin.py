"""Pytest plugin: takes tests in a given order and writes what became of each as it ends, one JSON line a test.

Where a GPU answers nothing any more after a failed test, the session ends: the next process goes on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

OUTCOMES = ("passed", "skipped", "failed")  # the worst of a test's phases counts


def pytest_addoption(parser: pytest.Parser) -> None:
    """--gpu-list, --gpu-take, --gpu-results, --gpu-lane."""
    group = parser.getgroup("gpu")
    group.addoption("--gpu-list", type=Path, help="write the collected tests' ids, as a JSON list")
    group.addoption("--gpu-take", type=Path, help="take the tests of this JSON list, in its order")
    group.addoption("--gpu-results", type=Path, help="append JSON lines here")
    group.addoption("--gpu-lane", default="", help="what to call this process in them")


def pytest_configure(config: pytest.Config) -> None:
    """Results only where they are asked for."""
    if config.getoption("--gpu-results"):
        config.pluginmanager.register(Results(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After all others, pytest's own order by fixtures included."""
    yield
    take = config.getoption("--gpu-take")
    if take:
        order = {name: number for number, name in enumerate(json.loads(take.read_text()))}
        taken = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in order])
        items[:] = taken
    listed = config.getoption("--gpu-list")
    if listed:
        listed.write_text(json.dumps([item.nodeid for item in items]))


def device_answers() -> bool:
    """Whether CUDA, where this process has begun to use it, still works."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


class Results:
    """Writes `begun` and `outcome` records."""

    def __init__(self, config: pytest.Config) -> None:
        self._path: Path = config.getoption("--gpu-results")
        self._lane: str = config.getoption("--gpu-lane")
        self._outcome: dict[str, object] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._outcome = {"outcome": "passed", "why": "", "seconds": 0.0}
        self._write({"test": nodeid, "begun": True})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and tear-down of a test."""
        found = self._outcome
        found["seconds"] = round(found["seconds"] + report.duration, 2)
        if OUTCOMES.index(report.outcome) > OUTCOMES.index(found["outcome"]):
            found |= {"outcome": report.outcome, "why": _reason(report)}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        """A test with all that belongs to it."""
        answer = yield
        self._write({"test": item.nodeid, **self._outcome})
        if self._outcome["outcome"] == "failed" and not device_answers():
            self._write({"lost": item.nodeid})
            item.session.shouldstop = f"the GPU failed in {item.nodeid}"
        return answer

    def _write(self, record: dict[str, object]) -> None:
        """In one write, since other processes append too."""
        line = json.dumps({"lane": self._lane, **record}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def _reason(report: pytest.TestReport) -> str:
    """In one line."""
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return text.strip().partition("\n")[0][:300]
