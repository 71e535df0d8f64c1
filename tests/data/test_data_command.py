import re

import pytest

from megaselect.data.indexed_dataset import IndexedDataset

COMMAND = """
import argparse, sys
from megaselect.cli.data import add_data_parser
parser = argparse.ArgumentParser(prog="megaselect")
add_data_parser(parser.add_subparsers(required=True))
try:
    args = parser.parse_args(sys.argv[1:])
finally:
    heavy = {"numpy", "sentencepiece", "torch"} & set(sys.modules)
    if heavy:
        print("imported too early:", *heavy)
args.run(args)
"""


@pytest.fixture
def megaselect_command(start_python):
    def call(*args):
        child = start_python(COMMAND, *args)
        out, err = child.communicate()
        return child.returncode, out, err

    return call


def test_prepare_prints_what_it_wrote(tmp_path, megaselect_command):
    text = "the cat sat on the mat, é\n" * 200
    (tmp_path / "cats.txt").write_bytes(text.encode() + b"\xff")
    arguments = ["--input", tmp_path / "cats.txt", "--output", tmp_path / "cats", "--vocab-size", "280"]
    status, out, err = megaselect_command("data", "prepare", *arguments, "--valid-fraction", "0.1")
    assert (status, err) == (0, "")
    lines = out.replace(f"{tmp_path}/", "").splitlines()
    train, valid = (len(IndexedDataset(tmp_path / name).tokens) for name in ("cats", "cats_valid"))
    total = len(text.encode()) + 1
    tail = round(0.1 * total)
    sha256 = re.fullmatch(r"sha256 of the text: ([0-9a-f]{64})", lines[5])[1]
    assert lines == [
        f"cats.txt (text files: 1, bytes: {total:,})",
        f"cats.bin: 1 document, {train:,} tokens, {(total - tail) / train:.2f} bytes per token, {2 * train:,} bytes",
        f"cats_valid.bin: 1 document, {valid:,} tokens, {tail / valid:.2f} bytes per token, {2 * valid:,} bytes",
        f"cats.model: 280 pieces, {(tmp_path / 'cats.model').stat().st_size:,} bytes",
        "bytes that were not UTF-8, replaced by U+FFFD: 1",
        f"sha256 of the text: {sha256}",
    ]


def test_help_explains_and_loads_nothing_heavy(megaselect_command):
    status, out, err = megaselect_command("data", "prepare", "--help")
    assert (status, err) == (0, "")
    for part in ("--input PATH", "--output PREFIX", "--vocab-size N", "--tokenizer FILE", "--valid-fraction F", "0.05"):
        assert part in out
    assert "imported too early" not in out


def test_data_alone_asks_for_a_command(megaselect_command):
    status, _, err = megaselect_command("data")
    assert status == 2
    assert "the following arguments are required: COMMAND" in err
