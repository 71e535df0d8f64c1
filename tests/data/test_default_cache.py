import json

import pytest

from megaselect.data.corpus import default_corpus
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.prepare import default_cache_dir, prepare_default_corpus
from megaselect.errors import DataError

# Says that it is ready and waits, so that both children start to build at the same moment.
PREPARE = """
import sys
from pathlib import Path
from megaselect.data.prepare import prepare_default_corpus
print("ready", flush=True)
sys.stdin.readline()
print(prepare_default_corpus(Path(sys.argv[1])).train_prefix)
"""


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_default_dataset(default_dataset, tokenizer):
    corpus = default_corpus()
    assert default_dataset.sha256 == corpus.sha256
    assert default_dataset.train_prefix.parent.name == f"stdlib-{corpus.sha256[:16]}-vocab4096-format3"
    record = json.loads(default_dataset.record_path.read_text())
    assert record["sha256"] == corpus.sha256
    train, valid = IndexedDataset(default_dataset.train_prefix), IndexedDataset(default_dataset.valid_prefix)
    assert train.num_documents + valid.num_documents == len(corpus.documents)
    assert record["train"]["tokens"] == len(train.tokens)
    text_of = {document.name: document.path.read_bytes().decode() for document in corpus.documents}
    decoded = [tokenizer.decode(document[:-1].tolist()) for document in valid]
    assert set(decoded) < set(text_of.values())


def test_racing_processes_share_one_result(tmp_path, start_python, default_dataset):
    children = [start_python(PREPARE, tmp_path) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    outcomes = [child.communicate() for child in children]
    (home,) = tmp_path.iterdir()
    assert outcomes == [(f"{home}/corpus\n", "")] * 2
    assert contents(home) == contents(default_dataset.train_prefix.parent)


def test_what_is_there_is_used_and_not_built_again(default_dataset):
    home = default_dataset.train_prefix.parent
    # A build would leave its mark on the directory it builds in, even where the results are the same.
    watched = [home.parent, home, *home.iterdir()]
    before = [path.stat().st_mtime_ns for path in watched]
    assert prepare_default_corpus(home.parent) == default_dataset
    assert [path.stat().st_mtime_ns for path in watched] == before


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match=r"^a vocabulary of 100 has no room for every byte"):
        prepare_default_corpus(tmp_path, vocab_size=100)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    obstacle = tmp_path / "file"
    obstacle.write_text("in the way")
    with pytest.raises(DataError) as caught:
        prepare_default_corpus(obstacle)
    message = str(caught.value)
    assert message.startswith(f"cannot write the cache in {obstacle}: Not a directory ({obstacle}/.stdlib-")
    assert message.endswith("); set data.cache_dir or $MEGASELECT_CACHE to another place")


def test_a_cache_that_is_damaged(tmp_path):
    home = tmp_path / f"stdlib-{default_corpus().sha256[:16]}-vocab400-format3"
    home.mkdir()
    (home / "corpus.bin").write_bytes(b"")
    with pytest.raises(DataError, match=rf"^cannot write the cache in {tmp_path}: Directory not empty \("):
        prepare_default_corpus(tmp_path, vocab_size=400)
    assert list(tmp_path.iterdir()) == [home]


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEGASELECT_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "megaselect"
    monkeypatch.setenv("MEGASELECT_CACHE", "~/elsewhere")
    assert default_cache_dir() == tmp_path / "elsewhere"
