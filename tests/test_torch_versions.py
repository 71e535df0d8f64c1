"""`make test TORCH=...`: which versions there are, and that the pin is one of them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [line.split() for line in (ROOT / "torch-versions.txt").read_text().splitlines() if not line.startswith("#")]
PINS = (ROOT / "constraints.txt").read_text().splitlines()

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(*arguments, cwd=ROOT):
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_pin_is_a_line_with_the_packages_of_the_constraints():
    (line,) = [line for line in LINES if f"torch=={line[0]}" in PINS]
    assert set(line[2:]) <= set(PINS)


def test_every_line_names_a_python_and_a_triton():
    for torch, python, *packages in LINES:
        assert python in ("3.11", "3.12", "3.13"), torch
        assert sum(package.startswith("triton==") for package in packages) == 1, torch


def test_a_version_without_a_line_is_refused_with_those_that_have_one():
    refused = make("-n", "test", "TORCH=2.12.0")
    assert refused.returncode == 2
    known = " ".join(torch for torch, *_ in LINES)
    assert f"no line of torch-versions.txt is for torch 2.12.0; it has {known}" in refused.stderr


def test_a_lines_packages_stand_in_place_of_the_constraints(tmp_path):
    for name in ("Makefile", "torch-versions.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    target = tmp_path / ".venv-torch-2.11.0" / "constraints.txt"
    target.parent.mkdir()
    (target.parent / ".python").touch()
    assert make("TORCH=2.11.0", str(target.relative_to(tmp_path)), cwd=tmp_path).returncode == 0
    chosen = dict(line.split("==") for line in target.read_text().splitlines() if not line.startswith("#"))
    assert (chosen["torch"], chosen["triton"]) == ("2.11.0", "3.6.0")
    pinned = dict(line.split("==") for line in PINS if not line.startswith("#"))
    assert chosen.keys() == pinned.keys()
    assert chosen["hypothesis"] == pinned["hypothesis"]
