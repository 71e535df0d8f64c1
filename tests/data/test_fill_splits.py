"""A corpus of few documents has one in every split; a larger one is split as it was drawn."""

import json
from pathlib import Path

import pytest

from megaselect.data import fill_splits as module
from megaselect.data.build import BuildOptions
from megaselect.data.documents import Document
from megaselect.data.fill_splits import fill_splits
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.json_lines import LineOptions, cut_lines, parse_lines, split_of_line
from megaselect.data.pieces import divide, sample_text
from megaselect.data.prepare import prepare
from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError


def lines_file(root, texts, name="a.jsonl"):
    (root / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Document(name, root / name, 0, (root / name).stat().st_size, "jsonl")


def text_file(root, name, text):
    (root / name).write_text(text)
    return Document.whole(root / name, name)


def text_of(document):
    return document.path.read_text()[document.start : document.stop]


def splits_of(documents, options):
    """The texts in each split, lines without text left out."""
    splits = BuildOptions(lines=options).splits
    division = fill_splits(divide(documents, options.valid_fraction, options.test_fraction), splits, options, "input")
    found = {
        split: [each.path.read_text()[each.start : each.stop] for each in division.texts[split]] for split in splits
    }
    for document in division.lines:
        for lines in cut_lines(document, division.moved.get(document, ())):
            for text in parse_lines(lines, options):
                if text.raw:
                    found[text.split].append(text.raw.decode())
    return found


@pytest.mark.parametrize(
    ("texts", "valid", "test", "expected"),
    [
        ("ab", 0.05, 0, {"train": ["a"], "valid": ["b"]}),
        ("ab", 0, 0.05, {"train": ["a"], "test": ["b"]}),
        ("abc", 0.05, 0.01, {"train": ["a"], "valid": ["c"], "test": ["b"]}),
        (["", "a", "", "b", ""], 0.05, 0, {"train": ["a"], "valid": ["b"]}),
        ("a", 0, 0, {"train": ["a"]}),
        ("ab", 0.999, 0, {"train": ["b"], "valid": ["a"]}),
    ],
)
def test_each_split_takes_a_line(tmp_path, texts, valid, test, expected):
    assert splits_of([lines_file(tmp_path, texts)], LineOptions("text", valid, test)) == expected


def test_each_split_takes_a_text_too_short_to_be_cut(tmp_path):
    documents = [text_file(tmp_path, f"{name}.txt", name) for name in "abc"]
    assert splits_of(documents, LineOptions("text", 0.05, 0.05)) == {"train": ["a"], "valid": ["c"], "test": ["b"]}
    # The last of the split's documents is a line, where there are both.
    mixed = [documents[0], lines_file(tmp_path, "x")]
    assert splits_of(mixed, LineOptions("text", 0.05)) == {"train": ["a"], "valid": ["x"]}


@pytest.mark.parametrize(("valid", "test"), [(0.05, 0), (0.05, 0.02), (0.3, 0), (0, 0.1)])
def test_what_was_drawn_for_every_split_stays(tmp_path, valid, test):
    document, options = lines_file(tmp_path, map(str, range(1, 101))), LineOptions("text", valid, test)
    seed = int.from_bytes(document.name_digest[:8], "little")
    for split, texts in splits_of([document], options).items():
        assert texts == [str(line) for line in range(1, 101) if split_of_line(seed, line, options) == split] != []


def test_no_more_is_read_than_until_every_split_has_a_document(tmp_path, monkeypatch):
    document, options = lines_file(tmp_path, ["word " * 1000] * 1000), LineOptions("text", 0.05, 0.02)
    groups = []
    monkeypatch.setattr(module, "cut_lines", lambda *args: (groups.append(each) or each for each in cut_lines(*args)))
    division = divide([document], 0.05, 0.02)
    assert fill_splits(division, ["train", "valid", "test"], options, "") is division
    assert sum(len(group.raw) for group in groups) < 0.2 * document.num_bytes


def test_the_tokenizer_is_not_trained_on_a_line_that_was_moved(tmp_path):
    options = LineOptions("text", 0.05)
    division = fill_splits(divide([lines_file(tmp_path, "ab")], 0.05, 0), ["train", "valid"], options, "")
    assert list(sample_text(division, options, 1000)) == ["a"]


def test_too_few(tmp_path):
    for texts, remedy in (("a", "--valid-fraction 0 --test-fraction 0"), ("ab", "--test-fraction 0")):
        with pytest.raises(DataError, match=rf"^input: .* would need 3 documents, .*; add documents, or set {remedy}$"):
            splits_of([lines_file(tmp_path, texts)], LineOptions("text", 0.05, 0.01))
    with pytest.raises(DataError, match=r"^input: there is no document with text in it; name input that has one$"):
        splits_of([lines_file(tmp_path, ["", ""])], LineOptions())


def test_a_few_long_documents_are_prepared_the_same_by_any_number_of_workers(tmp_path, default_dataset):
    texts = [f"document {number}: " + "the cat sat on the mat " * 10_000 for number in range(8)]
    lines_file(tmp_path, texts)
    for workers in (1, 2):
        out = tmp_path / str(workers) / "out"
        paths = prepare([tmp_path / "a.jsonl"], out, tokenizer=default_dataset.tokenizer_path, workers=workers)
    files = [sorted(Path(tmp_path, name).iterdir()) for name in "12"]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()
    train, valid = IndexedDataset(paths.train_prefix), IndexedDataset(paths.valid_prefix)
    decoded = [Tokenizer(paths.tokenizer_path).decode(each[:-1].tolist()) for each in (*train, *valid)]
    assert decoded == texts
    assert valid.num_documents == 1
