"""The ops' files have two names, kernels.x and megaselect.kernels.x: who imports one by both is told so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# File -> the ops that it registers.
OPS = {path.stem: re.findall(r'^@custom_op\("(\w+)"', path.read_text(), re.M) for path in ROOT.glob("kernels/*.py")}
FILES = sorted(name for name, ops in OPS.items() if ops)

IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
    else:
        print(name)
"""


def imports(*names):
    """What a process says that imports the modules one after the other: a module's name, or what was raised."""
    command = [sys.executable, "-c", IMPORTS, *names]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return child.stdout.splitlines()


def refusal(first, second, op):
    return (
        f"{second} is the file that was imported as {first} before, and would register the op megaselect::{op} again; "
        f"import megaselect.kernels.{second.rpartition('.')[2]} alone"
    )


def test_no_op_is_imported_by_a_second_name():
    assert len(FILES) == 8
    names = [f"megaselect.kernels.{name}" for name in FILES], [f"kernels.{name}" for name in FILES]
    said = imports(*names[0], *names[1])
    assert said == [*names[0], *(refusal(*pair, OPS[name][0]) for name, *pair in zip(FILES, *names, strict=True))]


@pytest.mark.parametrize("later", ["megaselect.kernels.gelu", "megaselect.models.gpt.model"])
def test_the_name_that_came_first_is_told(later):
    told = refusal("kernels.gelu", "megaselect.kernels.gelu", "gelu")
    assert imports("kernels.gelu", later) == ["kernels.gelu", told]


def test_no_op_is_registered_otherwise():
    for path in ROOT.glob("kernels/*.py"):
        assert path.stem == "custom_op" or "torch.library" not in path.read_text(), path
