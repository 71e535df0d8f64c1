"""The first wrong token is found and its place named; a tokenizer that is not the data's is noticed without reading."""

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from megaselect.data import check
from megaselect.data.check import Vocabulary, check_sources, check_tokens
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.prepare import prepare
from megaselect.data.record import check_record, read_record
from megaselect.data.splits import SplitRules, open_splits
from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.errors import DataError

MODEL, TOKENIZER = Vocabulary.of_model(200), Vocabulary.of_tokenizer(100, Path("a.model"))


def message_of(call, *args):
    with pytest.raises(DataError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_in_range(write_index):
    assert check_tokens(IndexedDataset(write_index(tokens=bytes([0, 99, 1, 2, 3, 4]))), TOKENIZER) == (6, 2, 0, 99)
    assert check_tokens(IndexedDataset(write_index(tokens=bytes([5, 199, 2, 2, 3, 4]))), MODEL) == (6, 2, 2, 199)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("tokens", "document", "place"),
    [([200, 0, 0, 0, 0, 255], 0, 0), ([0, 0, 0, 201, 0, 0], 0, 3), ([0, 0, 0, 0, 0, 202], 2, 1)],
)
def test_the_first_id_outside_the_models_vocabulary(write_index, monkeypatch, chunk_tokens, tokens, document, place):
    """Sequences of 3, 1 and 2 tokens; the first two are document 0, the last is document 2, and 1 is empty."""
    monkeypatch.setattr(check, "_CHUNK_TOKENS", chunk_tokens)
    prefix = write_index(tokens=bytes(tokens), bounds=(0, 2, 2, 3))
    wrong = next(token for token in tokens if token >= 200)
    assert message_of(check_tokens, IndexedDataset(prefix), MODEL) == (
        f"{prefix}.bin holds token id {wrong} in document {document} at token {place} (both counted from 0), outside "
        "the model's vocabulary of 200; set model.vocab_size to that of the tokenizer it was written with"
    )


def test_an_id_that_the_tokenizer_has_not(write_index):
    prefix = write_index(tokens=bytes([1, 100, 1, 1, 1, 1]))
    assert message_of(check_tokens, IndexedDataset(prefix), TOKENIZER) == (
        f"{prefix}.bin holds token id 100 in document 0 at token 1 (both counted from 0), outside the 100 pieces "
        "of the tokenizer a.model; it is damaged, or another tokenizer wrote it: prepare it again, or name that one "
        "(data.tokenizer)"
    )


def test_negative_ids_and_scattered_sequences(write_index):
    prefix = write_index(tokens=bytes([0, 255, 1, 2, 3, 4]), offsets=(3, 1, 0), bounds=(0, 1, 2, 3), code=2)
    # stream: 2 3 4 | 255 | 0 255, where 255 is -1
    message = message_of(check_tokens, IndexedDataset(prefix), MODEL)
    assert message.startswith(f"{prefix}.bin holds token id -1 in document 1 at token 0 (both counted from 0), outside")


def test_every_dataset_of_every_split_is_read_once(write_tokens, monkeypatch):
    a, b = write_tokens("a", [1] * 100), write_tokens("b", [2] * 100)
    valid = write_tokens("b_valid", [3] * 100)
    splits = open_splits([(Fraction(1), a), (Fraction(1), b)], SplitRules(8, 0, valid_fraction=0.2))
    read = []
    reading = check.check_tokens

    def noted(dataset, vocabulary):
        read.append(str(dataset.bin_path))
        return reading(dataset, vocabulary)

    monkeypatch.setattr(check, "check_tokens", noted)
    assert check_sources([splits.train, splits.valid], MODEL) == (300, 3, 1, 3)
    assert read == [f"{prefix}.bin" for prefix in (a, b, valid)]


def test_what_was_read_is_let_go(write_index, monkeypatch):
    """32 MB, a megabyte at a time. `shared` in statm counts the pages of files that a process has mapped."""

    def mapped_bytes():
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")

    monkeypatch.setattr(check, "_CHUNK_TOKENS", 2**20)
    size = 32 * 2**20
    dataset = IndexedDataset(write_index(bytes(size), (size,), (0,), (0, 1)))
    before = mapped_bytes()
    seen = []
    for _, chunk in check.token_chunks(dataset):
        assert chunk.max() == 0
        seen.append(mapped_bytes() - before)
    assert len(seen) == 32
    assert max(seen) < size / 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tokenizers of 279 and 280 pieces, and another of 280."""
    sentences = ["the cat sat on the mat\n", "the dog sat\ton the log\n"] * 10
    directory = tmp_path_factory.mktemp("models")
    for name, lines, pieces in [("a", sentences, 279), ("b", sentences, 280), ("c", [*sentences, "zebra"] * 9, 280)]:
        (directory / f"{name}.model").write_bytes(train_tokenizer(lines, pieces))
    return [directory / f"{name}.model" for name in "abc"]


def test_the_record_tells_which_tokenizer_wrote_the_data(tmp_path, models):
    small, right, other = models
    prefix, record = tmp_path / "text", tmp_path / "text.json"
    check_record(prefix, right, Tokenizer(right), 300)
    record.write_text(json.dumps({"vocab_size": 280}))
    for path in (right, other):
        check_record(prefix, path, Tokenizer(path), 300)
    assert message_of(check_record, prefix, small, Tokenizer(small), 300) == (
        f"{prefix} was written with a tokenizer of 280 pieces ({record}), but {small} has 279; name the one it was "
        "written with (data.tokenizer), or prepare the data again"
    )
    record.write_text(
        json.dumps({"vocab_size": 280, "tokenizer_sha256": hashlib.sha256(right.read_bytes()).hexdigest()})
    )
    check_record(prefix, right, Tokenizer(right), 300)
    assert message_of(check_record, prefix, other, Tokenizer(other), 300) == (
        f"{prefix} was written with another tokenizer than {other}, by the checksum in {record}; name the one it was "
        "written with (data.tokenizer), or prepare the data again"
    )


def test_without_a_tokenizer_the_record_still_says_how_large_the_vocabulary_is(tmp_path):
    prefix = tmp_path / "text"
    (tmp_path / "text.json").write_text('{"vocab_size": 280}')
    check_record(prefix, None, None, 280)
    assert message_of(check_record, prefix, None, None, 279) == (
        f"{prefix}.json says that {prefix} was written with a tokenizer of 280 pieces, but model.vocab_size is 279: "
        "raise model.vocab_size"
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"text": "one"}\n{"text": "two"}\n', id="lines of JSON, as Megatron-LM takes them"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\0", id="no text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"[280]", id="a list"),
        pytest.param(b'{"vocab_size": true}', id="another vocab_size"),
        pytest.param(b'{"vocab_size": 280}' + b" " * 2**20, id="large"),
    ],
)
def test_a_json_that_is_no_record_is_left_alone(tmp_path, content):
    (tmp_path / "text.json").write_bytes(content)
    assert read_record(tmp_path / "text") is None


def test_prepare_writes_a_record_that_is_read(tmp_path):
    (tmp_path / "cat.txt").write_text("the cat sat on the mat\n" * 200)
    prepare([tmp_path / "cat.txt"], tmp_path / "text", vocab_size=270)
    record, model = read_record(tmp_path / "text"), (tmp_path / "text.model").read_bytes()
    assert (record.vocab_size, record.tokenizer_sha256) == (270, hashlib.sha256(model).hexdigest())
    check_record(tmp_path / "text", tmp_path / "text.model", Tokenizer(tmp_path / "text.model"), 270)
