import gzip
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

import megaselect
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.data.prepare import prepare_default_corpus
from megaselect.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def default_dataset(tmp_path_factory):
    return prepare_default_corpus(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer(default_dataset):
    return Tokenizer(default_dataset.tokenizer_path)


@pytest.fixture(scope="session")
def start_python():
    """Starts `python -c code args…` in a process of its own, with pipes for its three streams."""
    root = str(Path(megaselect.__file__).parents[1])

    def start(code, *args):
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": root},
        )

    return start


@pytest.fixture
def write_tokens(tmp_path):
    """Writes one document of the tokens to a dataset of that name; returns the prefix."""

    def write(name, tokens, vocab_size=50_000):
        with IndexedDatasetWriter(tmp_path / name, vocab_size) as writer:
            writer.add_document(tokens)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def mixed_corpus(tmp_path_factory):
    """A directory of text and of lines, compressed and not: more than four times what a process encodes at a time."""
    root = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "of", "naïve", "façade", "😀"]

    def text(num_words):
        return " ".join(draw.choices(words, k=num_words)) + "\n"

    def lines():
        return "".join(json.dumps({"text": text(draw.randrange(500)), "id": 1}) + "\n" for _ in range(400)).encode()

    for number in range(12):
        (root / f"{number}.txt").write_text(text(4000))
    (root / "long.txt").write_text(text(100_000))
    (root / "long.zst").write_bytes(zstandard.compress(text(100_000).encode()))
    (root / "lines.jsonl").write_bytes(lines())
    (root / "more").mkdir()
    (root / "more" / "lines.jsonl.gz").write_bytes(gzip.compress(lines()))
    (root / "more" / "lines.jsonl.zst").write_bytes(zstandard.compress(lines()))
    return root


@pytest.fixture
def write_index(tmp_path):
    """Writes an index and its tokens byte by byte, by the format and not by our writer; returns the prefix."""

    def write(
        tokens=b"\1\2\3\4\5\6",
        lengths=(3, 1, 2),
        offsets=(0, 3, 4),
        bounds=(0, 2, 3),
        *,
        magic=b"MMIDIDX\0\0",
        version=1,
        code=1,
        trailer=b"",
    ):
        prefix = tmp_path / "text.v1"
        index = magic + struct.pack("<QBQQ", version, code, len(lengths), len(bounds))
        index += struct.pack(f"<{len(lengths)}i", *lengths)
        index += struct.pack(f"<{len(offsets)}q", *offsets)
        index += struct.pack(f"<{len(bounds)}q", *bounds)
        Path(f"{prefix}.idx").write_bytes(index + trailer)
        Path(f"{prefix}.bin").write_bytes(tokens)
        return prefix

    return write
