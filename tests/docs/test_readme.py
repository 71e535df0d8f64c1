"""README.md: short, and what it names is there: files, headings, packages, commands and their flags."""

import re
import shlex
from pathlib import Path

import pytest

from megaselect.cli.main import _COMMANDS
from megaselect.cli.train import parse_train_args

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAYOUT = README.partition("## Layout\n")[2]


def headings(path):
    """As links name them: in small letters, without signs, with - between words."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_it_is_short_and_says_first_what_it_is_in_the_words_of_the_field():
    assert len(README.splitlines()) < 120
    beginning = " ".join(README[:400].lower().split())
    for term in ("activation checkpointing", "gradient checkpointing", "activation recomputation"):
        assert term in beginning


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", README)
    assert len(links) > 15
    for target, heading in links:
        assert (ROOT / target).exists(), target
        assert not heading or heading in headings(ROOT / target), heading


def test_its_layout_names_every_package():
    named = set(re.findall(r"[\w./]+", " ".join(line[:88] for line in LAYOUT.splitlines() if line.startswith("    "))))
    packages = {path.parent.name for path in (ROOT / "megaselect").glob("*/__init__.py")}
    for name in packages - {"config"}:
        assert named & {name, f"{name}/gpt", f"megaselect/{name}", f"megaselect/{name}/gpt"}, name
    for path in ("train.py", "configs/", "examples/", "kernels/", "benchmarks/", "docs/", "findings/"):
        assert path in named
        assert (ROOT / path).exists()


@pytest.mark.parametrize("line", re.findall(r"^    \.venv/bin/(.*?)(?:  +#.*)?$", README, re.MULTILINE))
def test_its_commands_can_be_given(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, command, *arguments = shlex.split(line)
    if program == "torchrun":
        arguments = arguments[arguments.index("train.py") + 1 :]
        parse_train_args(arguments)
    elif program == "megaselect":
        assert command in _COMMANDS
    elif "--help" not in arguments:
        assert (program, command) == ("python", "train.py")
        parse_train_args(arguments)
