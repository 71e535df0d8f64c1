"""Commands for the tests of a run on a GPU: real processes that print, hang, die and leave others behind."""

import sys


def python(code, *arguments):
    """The command that runs it."""
    return [sys.executable, "-c", code, *map(str, arguments)]


# Prints, starts a process that would live on, and waits for ever; both hold the pipe that is named.
HANGS = """
import os, subprocess, sys, threading
pipe = os.open(sys.argv[1], os.O_WRONLY)
subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"], pass_fds=[pipe])
print("partial result", flush=True)
os.write(pipe, b"begun")
threading.Event().wait()
"""

# Stands in for benchmarks/run.py: what a case does is in its name; its records are the runner's.
RUNNER = """
import json, os, pathlib, sys, threading
arguments = sys.argv[1:]
out = pathlib.Path(arguments[arguments.index("--out") + 1])
path = out.with_name(out.stem + ".cases.jsonl")
def write(record):
    with path.open("a") as file:
        file.write(json.dumps(record) + "\\n")
for case in arguments[arguments.index("--case") + 1:]:
    tried = path.exists() and f'"case": "{case}", "begun"' in path.read_text()
    write({"case": case, "begun": True})
    if "dies" in case:
        os.abort()
    if "hangs" in case:
        threading.Event().wait()
    if "loses the GPU" in case and not tried:
        sys.exit(3)
    write({"case": case, "rows": [{"case": case, "contender": "", "status": "ok", "reason": "", "value": 1}]})
"""

# Tests for a GPU that need none; `break_gpu` makes the plugin's question to the GPU answer no.
CONFTEST = """
import pytest
def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: as in the tree's own tests")
@pytest.fixture
def break_gpu(monkeypatch):
    from benchmarks.gpu import plugin
    plugin.device_answers = lambda: False
"""
TESTS = """
import os, threading, pytest
pytestmark = pytest.mark.cuda
@pytest.mark.parametrize("number", range(3))
def test_passes(number):
    pass
def test_loses_the_gpu(break_gpu):
    assert not "the GPU failed"
def test_fails():
    assert 1 == 2, "as it should"
def test_dies():
    os.abort()
def test_hangs():
    threading.Event().wait()
def test_skips():
    pytest.skip("for a reason")
def test_last():
    pass
"""
