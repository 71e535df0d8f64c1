import gzip
import json
import platform
import re
from fractions import Fraction

import numpy as np
import pytest
import zstandard

from megaselect.data import workers as workers_module
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.prepare import prepare
from megaselect.data.progress import NoProgress
from megaselect.data.splits import SplitRules, open_splits
from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError

VOCAB_SIZE = 300
FILES = {
    f"{number:02}.txt": f"Document {number}:\r\n\tthe cat ▁ sat  on {'the mat ' * number}é😀\n" for number in range(40)
}


@pytest.fixture
def texts(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    for name, text in FILES.items():
        (root / name).write_bytes(text.encode())
    return root


def decoded_documents(prefix, tokenizer):
    dataset = IndexedDataset(prefix)
    assert all(document[-1] == tokenizer.end_of_document_id for document in dataset)
    assert np.array_equal(np.concatenate(list(dataset)), dataset.tokens)
    return [tokenizer.decode(document[:-1].tolist()) for document in dataset]


def test_every_document_comes_back_exactly(texts, tmp_path):
    paths = prepare([texts], tmp_path / "out" / "text", VOCAB_SIZE, valid_fraction=0.2)
    tokenizer = Tokenizer(paths.tokenizer_path)
    train = decoded_documents(paths.train_prefix, tokenizer)
    valid = decoded_documents(paths.valid_prefix, tokenizer)
    assert sorted(train + valid) == sorted(FILES.values())
    assert train == [text for text in FILES.values() if text in train]
    assert valid
    names = [f"text{end}" for end in (".bin", ".idx", ".json", ".model", "_valid.bin", "_valid.idx")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_record_says_what_was_written(texts, tmp_path):
    (texts / "latin.txt").write_bytes(b"caf\xe9\n" * 3)
    (texts / "picture").write_bytes(b"\0")
    paths = prepare([texts], tmp_path / "text", VOCAB_SIZE, valid_fraction=0.2)
    record = json.loads(paths.record_path.read_text())
    assert record["sha256"] == paths.sha256
    assert record["python_version"] == platform.python_version()
    assert record["vocab_size"] == VOCAB_SIZE
    num_bytes = sum(path.stat().st_size for path in texts.glob("*.txt"))
    assert record["description"] == f"{texts} (text files: 41, bytes: {num_bytes:,}; binary files passed over: 1)"
    splits = {"train": paths.train_prefix, "valid": paths.valid_prefix}
    for split, prefix in splits.items():
        dataset = IndexedDataset(prefix)
        assert record[split]["documents"] == dataset.num_documents
        assert record[split]["tokens"] == len(dataset.tokens)
    assert sum(record[split]["bytes"] for split in splits) == num_bytes
    assert sum(record[split]["replaced_bytes"] for split in splits) == 3


def test_one_file_is_cut_for_validation(tmp_path):
    text = "première ligne\nsecond line 😀\n" * 4000
    (tmp_path / "one.txt").write_text(text)
    paths = prepare([tmp_path / "one.txt"], tmp_path / "out", VOCAB_SIZE - 10, valid_fraction=0.1)
    tokenizer = Tokenizer(paths.tokenizer_path)
    (train,), (valid,) = (decoded_documents(prefix, tokenizer) for prefix in (paths.train_prefix, paths.valid_prefix))
    assert train + valid == text
    assert abs(len(valid.encode()) - len(text.encode()) / 10) < 5


def test_the_same_text_gives_the_same_files(texts, tmp_path):
    for name in ("first", "second"):
        prepare([texts], tmp_path / name, VOCAB_SIZE)
    for end in (".bin", ".idx", ".model", "_valid.bin", "_valid.idx", ".json"):
        assert (tmp_path / f"first{end}").read_bytes() == (tmp_path / f"second{end}").read_bytes()


def test_a_tokenizer_of_ones_own(texts, tmp_path, default_dataset, tokenizer):
    paths = prepare([texts], tmp_path / "text", tokenizer=default_dataset.tokenizer_path)
    assert paths.tokenizer_path.read_bytes() == default_dataset.tokenizer_path.read_bytes()
    assert set(decoded_documents(paths.train_prefix, tokenizer)) < set(FILES.values())
    given = default_dataset.tokenizer_path
    message = f"{given} has 4096 pieces, not 300; leave --vocab-size out beside --tokenizer"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        prepare([texts], tmp_path / "text", 300, given)


def test_text_too_short_for_the_vocabulary(texts, tmp_path):
    with pytest.raises(DataError) as caught:
        prepare([texts], tmp_path / "text")
    fitting = int(re.search(r"; set the vocabulary size to (\d+), or add text$", str(caught.value))[1])
    assert Tokenizer(prepare([texts], tmp_path / "text", fitting).tokenizer_path).vocab_size == fitting


@pytest.mark.parametrize("fraction", [1, -0.1, float("nan")])
def test_fraction_out_of_range(texts, tmp_path, fraction):
    message = f"^the validation fraction is {fraction}; it must be 0 or more and less than 1$"
    with pytest.raises(DataError, match=message):
        prepare([texts], tmp_path / "text", VOCAB_SIZE, valid_fraction=fraction)


def test_too_little_text_for_a_split(tmp_path, default_dataset):
    (tmp_path / "tiny.txt").write_text("tiny")
    with pytest.raises(DataError) as caught:
        prepare([tmp_path / "tiny.txt"], tmp_path / "out", tokenizer=default_dataset.tokenizer_path)
    assert str(caught.value) == (
        f"{tmp_path}/tiny.txt (text files: 1, bytes: 4): --valid-fraction 0.05 would need 2 documents, one for each "
        "split, but there is 1 (a document is never split, unless it is a text file of more than a few bytes); add "
        "documents, or set --valid-fraction 0"
    )


def test_output_that_cannot_be_written(texts, tmp_path):
    obstacle = tmp_path / "file"
    obstacle.write_text("in the way")
    with pytest.raises(DataError) as caught:
        prepare([texts], obstacle / "text", VOCAB_SIZE)
    assert str(caught.value) == (
        f"cannot write {obstacle}/text: File exists ({obstacle}); choose an output prefix in a directory "
        "that can be written"
    )


# Stands in for a full disk: no file may grow beyond 1,000 bytes.
PREPARE_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from megaselect.data.prepare import prepare
from megaselect.data.progress import NoProgress
from megaselect.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    prepare([Path(sys.argv[1])], Path(sys.argv[2]), 300)
except DataError as error:
    print(error)
"""


def test_a_disk_that_fills_up(texts, tmp_path, start_python):
    output = tmp_path / "out" / "text"
    out, err = start_python(PREPARE_WITHOUT_ROOM, texts, output).communicate()
    expected = f"cannot write {output}: File too large; choose an output prefix in a directory that can be written\n"
    assert (out, err) == (expected, "")
    assert list(output.parent.iterdir()) == []


def test_the_files_are_the_same_for_any_number_of_workers(mixed_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_CHUNKS_PER_WORKER", 1)  # the corpus has few: results come while it is read
    for workers in (1, 2, 3):
        paths = prepare([mixed_corpus], tmp_path / str(workers), VOCAB_SIZE, test_fraction=0.02, workers=workers)
    for end in (".bin", ".idx", ".model", ".json", "_valid.bin", "_valid.idx", "_test.bin", "_test.idx"):
        one = (tmp_path / f"1{end}").read_bytes()
        assert (tmp_path / f"2{end}").read_bytes() == one
        assert (tmp_path / f"3{end}").read_bytes() == one
    record = json.loads(paths.record_path.read_text())
    assert record["files"] == {"jsonl": 1, "jsonl.gz": 1, "jsonl.zst": 1, "text": 13, "text.zst": 1}
    assert record["options"] == {
        "vocab_size": VOCAB_SIZE,
        "tokenizer": None,
        "json_field": "text",
        "valid_fraction": 0.05,
        "test_fraction": 0.02,
    }
    for split, prefix in (("train", "1"), ("valid", "1_valid"), ("test", "1_test")):
        dataset = IndexedDataset(tmp_path / prefix)
        kinds = record[split]["kinds"].values()
        assert dataset.num_documents == record[split]["documents"] == sum(kind["documents"] for kind in kinds)
        assert len(dataset.tokens) == record[split]["tokens"] == sum(kind["tokens"] for kind in kinds)


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def test_compressed_input_gives_the_same_tokens(tmp_path):
    texts = [f"Document {number}: the cat\r\n" * (number % 40) for number in range(300)]
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts).encode()
    text = "première ligne 😀\n".encode() * 3000
    for suffix, compress in COMPRESSIONS.items():
        root = tmp_path / f"input{suffix}"
        root.mkdir()
        (root / f"lines.jsonl{suffix}").write_bytes(compress(lines))
        (root / f"text.txt{suffix}").write_bytes(compress(text))
        prepare([root], tmp_path / f"out{suffix}", VOCAB_SIZE, json_field="body", test_fraction=0.1)
    for end in (".bin", ".idx", ".model", "_valid.bin", "_valid.idx", "_test.bin", "_test.idx"):
        for suffix in (".gz", ".zst"):
            assert (tmp_path / f"out{suffix}{end}").read_bytes() == (tmp_path / f"out{end}").read_bytes()
    tokenizer = Tokenizer(tmp_path / "out.model")
    splits = [decoded_documents(tmp_path / f"out{end}", tokenizer) for end in ("", "_valid", "_test")]
    # The text file's head, tail and what is before the tail; then lines, in order, but for the empty ones.
    assert "".join(documents[0] for documents in splits).encode() == text
    decoded = [document for documents in splits for document in documents[1:]]
    assert sorted(decoded) == sorted(filter(None, texts))
    assert [text for text in texts if text in splits[0]] == splits[0][1:]
    record = json.loads((tmp_path / "out.json").read_text())
    assert sum(record[split]["empty_documents"] for split in ("train", "valid", "test")) == texts.count("")


def test_what_is_replaced_in_lines_is_counted(tmp_path, default_dataset):
    lines = b'{"text": "caf\xe9 \\ud800"}\n' * 200
    (tmp_path / "lines.jsonl").write_bytes(lines)
    paths = prepare([tmp_path / "lines.jsonl"], tmp_path / "out", tokenizer=default_dataset.tokenizer_path)
    record = json.loads(paths.record_path.read_text())
    assert record["train"]["documents"] + record["valid"]["documents"] == 200
    for split in ("train", "valid"):
        counts = record[split]
        assert counts["replaced_bytes"] == counts["replaced_surrogates"] == counts["documents"] > 0
        assert counts["bytes"] == counts["documents"] * len("caf\ufffd \ufffd".encode())


def test_splits_of_an_earlier_dataset_are_not_left_behind(texts, tmp_path):
    prepare([texts], tmp_path / "text", VOCAB_SIZE, test_fraction=0.2)
    assert IndexedDataset(tmp_path / "text_test").num_documents > 3
    prepare([texts], tmp_path / "text", VOCAB_SIZE, valid_fraction=0)
    assert not list(tmp_path.glob("text_*"))
    record = json.loads((tmp_path / "text.json").read_text())
    assert record["options"]["valid_fraction"] == 0
    assert "valid" not in record
    assert record["train"]["documents"] == IndexedDataset(tmp_path / "text").num_documents == len(FILES)
    splits = open_splits([(Fraction(1), tmp_path / "text")], SplitRules(8, 0, valid_fraction=0.25))
    assert splits.valid.num_tokens == -(-record["train"]["tokens"] // 4)  # the tail, where training on the prefix


def test_a_test_split_that_no_dataset_here_speaks_of_is_not_touched(texts, tmp_path):
    (tmp_path / "text_test.bin").write_bytes(b"somebody's")
    prepare([texts], tmp_path / "text", VOCAB_SIZE)
    assert (tmp_path / "text_test.bin").read_bytes() == b"somebody's"


class Notes(NoProgress):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)

    def stage(self, name, total_bytes, done_bytes=0):
        self.texts.append(name)


def test_a_dataset_that_is_replaced_is_named_before_the_work_begins(texts, tmp_path):
    prefix = tmp_path / "text"

    def told(**options):
        notes = Notes()
        prepare([texts], prefix, VOCAB_SIZE, progress=notes, **options)
        return notes.texts

    record = json.loads(prepare([texts], prefix, VOCAB_SIZE).record_path.read_text())
    tokens = record["train"]["tokens"] + record["valid"]["tokens"]
    note = (
        f"note: the dataset {prefix}, of other text or made with other options, is replaced: documents: 40, "
        f"tokens: {tokens:,}, pieces of its tokenizer: {VOCAB_SIZE}."
    )
    assert told() == ["reading", "tokenizer", "tokens"]
    assert told(valid_fraction=0.1) == ["reading", note, "tokenizer", "tokens"]
    (texts / "00.txt").write_text("other text")
    assert len(told(valid_fraction=0.1)) == 4
    (tmp_path / "text.json").write_text("[]")
    assert told() == ["reading", "tokenizer", "tokens"]
