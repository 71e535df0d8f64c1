"""What `megaselect data inspect` says of datasets whose content is known."""

import hashlib
import json
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from megaselect.cli.main import main
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.data.inspection import LengthRange, Lengths, inspect_dataset
from megaselect.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat\n", "\x1b[31m the dog\tsat on the log\n" * 9, "", "日本" * 300]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Four documents and their tokenizer; the third is nothing but its end."""
    prefix = tmp_path_factory.mktemp("datasets") / "text"
    Path(f"{prefix}.model").write_bytes(train_tokenizer(TEXTS[:2] * 10, 280))
    tokenizer = Tokenizer(f"{prefix}.model")
    with IndexedDatasetWriter(prefix, 280) as writer:
        for text in TEXTS:
            writer.add_document([*tokenizer.encode(text), 1])
    return str(prefix)


@pytest.fixture
def inspect(capsys):
    def call(*words):
        code = main(["data", "inspect", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_everything_as_json(inspect, prefix):
    code, out, err = inspect(prefix, "--json", "--samples", "9")
    assert (code, err) == (0, "")
    got = json.loads(out)
    documents = [[*Tokenizer(f"{prefix}.model").encode(text), 1] for text in TEXTS]
    stream = list(chain.from_iterable(documents))
    sizes = sorted(map(len, documents))
    assert {name: got[name] for name in ("prefix", "documents", "sequences", "tokens", "dtype")} == {
        "prefix": prefix,
        "documents": 4,
        "sequences": 4,
        "tokens": len(stream),
        "dtype": "uint16",
    }
    assert (got["lowest_id"], got["highest_id"]) == (min(stream), max(stream))
    lengths = got["lengths"]
    assert (lengths["min"], lengths["median"], lengths["max"]) == (1, (sizes[1] + sizes[2]) / 2, sizes[3])
    for each in lengths["histogram"]:
        assert each["documents"] == sum(each["least"] <= size <= each["most"] for size in sizes) > 0
    assert sum(each["documents"] for each in lengths["histogram"]) == 4
    assert got["end_of_document"] == {"token": 1, "share_of_tokens": 4 / len(stream), "documents_ended": 4}
    assert (got["tokenizer"], got["tokenizer_vocab_size"]) == (f"{prefix}.model", 280)
    for facts, suffix in zip(got["files"], (".bin", ".idx"), strict=True):
        content = Path(prefix + suffix).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert facts == {"path": prefix + suffix, "bytes": len(content), "sha256": sha256}
    assert [sample["document"] for sample in got["samples"]] == [0, 1, 2, 3]
    assert [sample["text"] for sample in got["samples"][:3:2]] == [TEXTS[0], TEXTS[2]]
    assert [sample["ids"] for sample in got["samples"]] == [ids[:64] for ids in documents]


def test_lines_fit_a_terminal_and_leave_it_alone(inspect, prefix, monkeypatch):
    monkeypatch.chdir(Path(prefix).parent)
    code, out, err = inspect("text", "--samples", "4")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    # A character of Japanese takes two columns.
    columns = [len(line) + sum(character in "日本" for character in line) for line in lines]
    assert max(columns) <= 80
    assert all(line.isprintable() for line in lines)
    assert "  \\x1b[31m the dog\\tsat on the log\\n" in out
    assert "  documents        4\n" in out
    assert f"  {hashlib.sha256(Path('text.bin').read_bytes()).hexdigest()}" in lines


def test_no_line_ends_in_blanks(inspect, prefix, tmp_path):
    with IndexedDatasetWriter(tmp_path / "spaces", 280) as writer:
        writer.add_document([*Tokenizer(f"{prefix}.model").encode("the  " + " " * 40 + "cat   "), 1])
    _, out, _ = inspect(tmp_path / "spaces", "--tokenizer", f"{prefix}.model")
    assert "  the" + " " * 42 + "cat\n" in out
    assert out.splitlines() == [line.rstrip() for line in out.splitlines()]


@pytest.mark.parametrize("suffix", ["_valid", "_test"])
def test_splits_share_the_tokenizer_of_the_training_tokens(prefix, suffix):
    with IndexedDatasetWriter(prefix + suffix, 280) as writer:
        writer.add_document([*Tokenizer(f"{prefix}.model").encode("the cat"), 1])
    assert inspect_dataset(prefix + suffix, 1).samples[0].text == "the cat"


def test_a_dataset_of_several_sequences_a_document_without_a_tokenizer(inspect, write_index):
    """As Megatron-LM writes it: documents of sequences 0 and 1, of none, and of 2; scattered over the file."""
    tokens = struct.pack("<6H", 7, 9, 300, 9, 5, 9)
    prefix = write_index(tokens, (2, 3, 1), (8, 0, 2), (0, 2, 2, 3), code=8)
    # stream: 5 9 7 9 300 | | 9
    got = inspect_dataset(str(prefix), 5)
    assert (got.documents, got.sequences, got.tokens, got.dtype) == (3, 3, 6, "uint16")
    assert (got.lowest_id, got.highest_id) == (5, 300)
    assert got.lengths == Lengths(0, 1.0, 5, [LengthRange(0, 0, 1), LengthRange(1, 1, 1), LengthRange(4, 7, 1)])
    assert (got.end_of_document.token, got.end_of_document.documents_ended) == (9, 1)
    assert got.end_of_document.share_of_tokens == 3 / 6
    assert [(sample.document, sample.ids, sample.text) for sample in got.samples] == [
        (0, [5, 9, 7, 9, 300], None),
        (2, [9], None),
    ]
    code, out, _ = inspect(prefix)
    assert code == 0
    assert "  tokenizer        none; --tokenizer names one\n" in out
    assert "document 0, its first 5 tokens:\n  5 9 7 9 300\n" in out


def test_a_tokenizer_that_lacks_some_ids_decodes_only_what_it_knows(inspect, write_index, prefix):
    foreign = write_index(struct.pack("<6H", 2, 3, 1, 280, 5, 1), (3, 3), (0, 6), (0, 1, 2), code=8)
    code, out, _ = inspect(foreign, "--tokenizer", f"{prefix}.model")
    assert code == 0
    assert out.splitlines()[1] == (
        f"warning: there are ids up to 280, beyond the 280 pieces of the tokenizer {prefix}.model: the data is "
        "damaged, or another one wrote it"
    )
    assert out.endswith("document 1, its first 3 tokens:\n  280 5 1\n")


@pytest.mark.parametrize("suffix", ["", "_valid"])
def test_ids_that_the_record_does_not_know_of(inspect, tmp_path, suffix):
    with IndexedDatasetWriter(tmp_path / f"text{suffix}", 300) as writer:
        writer.add_document([1, 279])
    record = tmp_path / "text.json"
    for vocab_size in (280, 279):
        record.write_text(json.dumps({"vocab_size": vocab_size}))
        code, out, err = inspect(tmp_path / f"text{suffix}", "--json")
        problem = json.loads(out)["problem"]
        assert (code, err) == (0, "")
        assert (problem is None) == (vocab_size == 280)
    assert problem == (
        f"there are ids up to 279, beyond the 279 pieces of the tokenizer that {record} names: the data is damaged, "
        "or another one wrote it"
    )


def test_ids_below_0(inspect, write_index):
    foreign = write_index(bytes([255, 1, 2, 3, 4, 5]), code=2)
    out = inspect(foreign)[1]
    assert out.splitlines()[1] == "warning: there are ids below 0, from -1: the data is damaged"


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json", ".model"])
def test_the_name_of_a_file_of_the_dataset_will_do(inspect, prefix, suffix):
    assert inspect(prefix + suffix, "--json") == inspect(prefix, "--json")


def test_long_documents_and_many_have_a_short_histogram(write_tokens, tmp_path):
    with IndexedDatasetWriter(tmp_path / "many", 10) as writer:
        for length in np.random.default_rng(0).integers(1, 20_000, 300).tolist():
            writer.add_document([1] * length)
    ranges = inspect_dataset(str(tmp_path / "many"), 0).lengths.histogram
    assert len(ranges) <= 9
    assert sum(each.documents for each in ranges) == 300


def test_what_cannot_be_inspected_is_one_line(inspect, tmp_path, prefix):
    code, out, err = inspect(tmp_path / "absent")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}/absent.idx does not exist; name the common prefix")
    assert inspect(prefix, "--samples", "-1") == (2, "", "error: --samples -1: must be 0 or more\n")
    assert inspect(prefix, "--samples", "0")[1].count("document ") == 0
