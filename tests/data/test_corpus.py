import hashlib
import sysconfig
from pathlib import Path

import pytest

from megaselect.data.corpus import default_corpus
from megaselect.data.documents import split_documents
from megaselect.errors import DataError


def test_corpus_is_the_standard_librarys_sources():
    corpus = default_corpus()
    names = [document.name for document in corpus.documents]
    assert names == sorted(set(names))
    assert {"argparse.py", "asyncio/events.py", "json/decoder.py", "typing.py"} <= set(names)
    excluded = {"test", "tests", "idle_test", "idlelib", "lib2to3", "encodings", "site-packages", "dist-packages"}
    assert not excluded & {part for name in names for part in Path(name).parts}
    assert 5e6 < sum(document.num_bytes for document in corpus.documents) < 20e6


def test_corpus_and_its_hash_are_the_same_each_time():
    corpus = default_corpus()
    assert corpus == default_corpus()
    root = Path(sysconfig.get_path("stdlib"))
    lines = [
        f"{hashlib.sha256((root / document.name).read_bytes()).hexdigest()}  {document.name}\n"
        for document in corpus.documents
    ]
    assert corpus.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_split_is_by_file():
    documents = default_corpus().documents
    train, valid = split_documents(documents, 0.05)
    train_names, valid_names = ({document.name for document in split} for split in (train, valid))
    assert not train_names & valid_names
    assert sorted(train_names | valid_names) == [document.name for document in documents]
    total = sum(document.num_bytes for document in documents)
    assert 0.045 < sum(document.num_bytes for document in valid) / total <= 0.05


def test_what_is_left_out(tmp_path):
    kept = {"a.py": b"a" * 2_000_000, "lib/b.py": "é".encode(), "test_c.py": b"c"}
    dropped = {
        **{f"{name}/x.py": b"x" for name in ("test", "lib/tests", "idlelib", "lib2to3", "encodings", "site-packages")},
        **{f"{name}/x.py": b"x" for name in ("ensurepip/_bundled", "config-3.11-x86_64-linux-gnu", "dist-packages")},
        "_sysconfigdata__linux.py": b"x",
        "empty.py": b"",
        "latin.py": b"\xe9",
        "notes.txt": b"x",
    }
    for name, content in {**kept, **dropped}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert [document.name for document in default_corpus(tmp_path).documents] == ["a.py", "lib/b.py", "test_c.py"]


def test_a_python_without_sources_is_refused(tmp_path):
    (tmp_path / "os.py").write_bytes(b"import sys\n")
    for root, size in ((tmp_path, 11), (tmp_path / "python311.zip", 0)):
        with pytest.raises(DataError) as caught:
            default_corpus(root)
        assert str(caught.value) == (
            f"the default corpus is Python's standard library, but {root} holds only {size} bytes of "
            "sources (zipped or stripped); "
            "set data.prefix to a dataset of your own, written by `megaselect data prepare`"
        )
