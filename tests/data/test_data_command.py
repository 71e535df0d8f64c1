import hashlib

import pytest

from megaselect.cli.main import main
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
    content = hashlib.sha256((tmp_path / "cats.txt").read_bytes()).hexdigest()
    sha256 = hashlib.sha256(f"{content}  cats.txt\n".encode()).hexdigest()
    head = lines.index(f"sha256: {sha256}")  # how the first words are wrapped depends on the path
    assert " ".join(lines[:head]) == f"cats.txt (text files: 1, bytes: {total:,})"
    assert lines[head:] == [
        f"sha256: {sha256}",
        "split  documents  tokens  bytes/token  file",
        f"train          1   {train:,}  {(total - tail) / train:11.2f}  cats.bin",
        f"valid          1  {valid:6,}  {tail / valid:11.2f}  cats_valid.bin",
        "tokenizer: cats.model, 280 pieces",
        "bytes that were not UTF-8, replaced by U+FFFD: 1",
    ]


def test_help_explains_and_loads_nothing_heavy(megaselect_command):
    status, out, err = megaselect_command("data", "prepare", "--help")
    assert (status, err) == (0, "")
    for part in (
        "--input PATH",
        "--output PREFIX",
        "--vocab-size N",
        "--tokenizer FILE",
        "--valid-fraction F",
        "0.05",
        "--workers N",
    ):
        assert part in out
    assert "imported too early" not in out


def test_data_alone_asks_for_a_command(megaselect_command):
    status, _, err = megaselect_command("data")
    assert status == 2
    assert "the following arguments are required: COMMAND" in err


@pytest.mark.parametrize(
    ("word", "message"),
    [("prepre", "unknown command prepre; did you mean prepare?"), ("x", "unknown command x; use prepare or inspect")],
)
def test_an_unknown_command(capsys, word, message):
    assert main(["data", word, "--output", "x"]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_inputs_of_a_flag_that_is_given_twice_are_all_read(tmp_path, megaselect_command):
    for name in ("cats", "dogs"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} sat on the mat\n" * 200)
    inputs = ["--input", tmp_path / "cats.txt", "--input", tmp_path / "dogs.txt"]
    status, out, err = megaselect_command(
        "data", "prepare", *inputs, "--output", tmp_path / "both", "--vocab-size", 280
    )
    assert (status, err) == (0, "")
    assert "text files: 2" in out.replace("\n", " ")
    assert len(IndexedDataset(tmp_path / "both")) == 2
