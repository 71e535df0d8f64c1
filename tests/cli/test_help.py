"""What `megaselect train --help` says: every flag, in 80 columns, with what its value is and what it is without it."""

import re
import subprocess
import sys
from pathlib import Path

from megaselect.cli.flags import SHORT_FLAGS
from megaselect.config import Config, iter_settings

ROOT = Path(__file__).parents[2]


def help_text(columns: int) -> str:
    code = "import sys; from megaselect.cli.main import main; main(['train', '--help'])"
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert child.stderr == ""
    return child.stdout


def test_help_fits_80_columns_and_lists_every_flag_once_in_its_group():
    text = help_text(80)
    assert max(map(len, text.splitlines())) <= 80
    groups = re.split(r"\n\n(?=\w+:\n)", text.partition("\n\nFlags win over")[0])
    assert groups[0].startswith("usage: megaselect train [--config FILE] [--recompute MODE] [flags]\n")
    flags = {
        group.partition(":")[0]: re.findall(r"^  (?:-h, )?(--[\w.-]+)", group, re.MULTILINE) for group in groups[1:]
    }
    short = ["--config", *SHORT_FLAGS.values(), "--debug", "--version", "--help"]
    assert sorted(flags.pop("flags")) == sorted(short)
    expected: dict[str, list[str]] = {}
    for name, _ in iter_settings():
        if name not in SHORT_FLAGS:
            expected.setdefault(name.partition(".")[0], []).append(f"--{name.replace('_', '-')}")
    assert flags == expected


def test_help_shows_defaults():
    words = " ".join(help_text(80).split())
    for line in (
        "--recompute {none,selective,full,auto} none keeps all; selective recomputes softmax and dropout; "
        "full recomputes whole layers; auto plans each layer, the fastest way that fits the memory (default: none)",
        "--memory SIZE what a step may hold with auto, such as 24GiB; none: what the device has free --max-steps",
        "--max-steps N optimizer steps in the whole run (default: 500; tiny: 600)",
        "(default: softmax dropout)",
        "--deterministic, --no-deterministic refuse operations whose bits vary from run to run (default: off)",
        "--model.hidden-size N width of the residual stream (tiny: 192)",
        "--model.ffn-hidden-size N width inside the MLP; none: 4 x hidden size --model.seq-length",
        "--training.beta2 X AdamW's decay of the second moment (default: 0.95)",
    ):
        assert line in words


def test_help_shows_what_a_run_without_flags_would_have():
    """Of every setting: the value after `tiny: `, or else the default, or else nothing."""
    tiny = Config.from_yaml(ROOT / "configs/tiny.yaml").to_dict()
    entries = [block.partition("\n\n")[0] for block in help_text(80).split("\n  -")]
    ends = {entry.split()[0].rstrip(",").removeprefix("-"): "".join(entry.split()) for entry in entries}
    for name, field in iter_settings():
        section, _, key = name.partition(".")
        value = tiny[section].get(key, field.default)
        words = {"True": ["on"], "False": ["off"], "None": []}.get(str(value), value)
        text = "".join(words) if isinstance(words, (list, tuple)) else str(words)
        end = ends[SHORT_FLAGS.get(name, f"--{name.replace('_', '-')}").removeprefix("--")]
        values = end.rpartition("".join(field.description.split()))[2].strip("()")
        assert (name, values.rpartition(";")[2].rpartition(":")[2]) == (name, text)


def test_help_names_what_a_value_is():
    text = help_text(100)
    assert " TEXT" not in text
    assert "none: none" not in text
    for flag in (
        "--run-dir DIR",
        "--resume PATH",
        "--exit-after DURATION",
        "--profile STEPS",
        "--recompute-layers LAYERS",
    ):
        assert f"  {flag} " in text or f"  {flag}\n" in text
