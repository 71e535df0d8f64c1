"""Every command where standard output takes no more than ASCII or Latin-1: signs get stand-ins, and nothing fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megaselect.cli.main import _COMMANDS

ROOT = Path(__file__).parents[2]
# One process, so that torch is imported once: each command's main prints to the real standard output.
CHILD = """
import shlex, sys
from megaselect.cli.main import main
for line in sys.stdin.read().splitlines():
    print("$", ascii(line), flush=True)
    try:
        code = main(shlex.split(line))
    except SystemExit as stop:
        code = stop.code
    print(f"exit code {code}", flush=True)
"""
SMALL = (
    "--model.num-layers 1 --model.hidden-size 32 --model.num-attention-heads 4 --model.seq-length 16 "
    "--training.micro-batch-size 2 --training.global-batch-size 2 --device cpu"
)
HELP = [f"{command} --help" for command in [*_COMMANDS, "data prepare", "data inspect"] if command != "data"]
TABLES = ["--help", *HELP, "estimate --device cpu"]
# compare and dashboard take long here, and print nothing beyond ASCII but names, through the same main.
WORK = [
    "data prepare --input text–1.txt --output data–1 --vocab-size 300 --valid-fraction 0.3",
    "data inspect data–1",
    f"train {SMALL} --data.prefix data–1 --run-dir run–1 --max-steps 2 --training.warmup-steps 1 --wandb disabled",
    "runs .",
    "sample --run run–1 --prompt größer–日本 --tokens 20",
    "evaluate --run run–1",
    f"verify {SMALL} --data.prefix data–1 --model.dropout-p 0",
]


def run(folder, encoding, lines):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    environment |= {"HOME": str(folder), "WANDB_MODE": "offline"}
    # The child reads its lines as UTF-8, whatever it writes.
    code = "import sys; sys.stdin.reconfigure(encoding='utf-8', errors='strict')\n" + CHILD
    given = "\n".join(lines).encode()
    child = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, input=given, capture_output=True)
    assert b"Traceback" not in child.stderr, child.stderr.decode(errors="replace")
    out = child.stdout.decode(encoding)
    assert out.count("exit code 0\n") == len(lines), out + child.stderr.decode(errors="replace")
    return out


def test_tables_and_help_in_latin_1(tmp_path):
    assert "red and - do not fit" in " ".join(run(tmp_path, "latin-1", TABLES).split())


@pytest.mark.soak
def test_every_command_in_ascii(tmp_path):
    (tmp_path / "text–1.txt").write_text("“Größer” – 日本, naïve… ✓ ×\n" * 400, encoding="utf-8")
    out = run(tmp_path, "ascii", [*TABLES, *WORK])
    assert '"Gr??er" - ??, na?ve... ok x' in " ".join(out.split())  # of data inspect
    assert "\ngr??er-??" in out  # of sample
