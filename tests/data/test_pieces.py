import json

import pytest

from megaselect.data.documents import BLOCK_BYTES, Document, read_blocks
from megaselect.data.json_lines import LineOptions
from megaselect.data.pieces import CHUNK_BYTES, cut_chunks, divide, sample_text

OPTIONS = LineOptions(valid_fraction=0.1)


def text_file(root, name, content):
    (root / name).write_bytes(content)
    return Document.whole(root / name, name)


def lines_file(root, name, texts):
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (root / name).write_bytes(content)
    return Document(name, root / name, 0, len(content), "jsonl")


def test_chunks_hold_the_corpus_in_order(tmp_path):
    documents = [
        lines_file(tmp_path, "a.jsonl", [f"{number} " * (number % 3000) for number in range(900)]),
        text_file(tmp_path, "b.txt", b"0123456789\n" * 70_000),
        *(text_file(tmp_path, f"{number}.txt", b"tiny %d\n" % number) for number in range(1200)),
    ]
    division = divide(documents, 0.1, 0.05)
    chunks = list(cut_chunks(division))
    pieces = [piece for chunk in chunks for piece in chunk]
    texts = [document for split in ("train", "valid", "test") for document in division.texts[split]]
    expected = b"".join(document.path.read_bytes()[document.start : document.stop] for document in texts)
    assert b"".join(piece.raw for piece in pieces) == expected + documents[0].path.read_bytes()
    assert sum(len(piece.raw) for piece in pieces) == division.num_bytes
    sizes = [sum(len(piece.raw) for piece in chunk) for chunk in chunks]
    assert max(sizes) < CHUNK_BYTES + 3 * BLOCK_BYTES
    assert max(map(len, chunks)) == 512


def test_a_small_corpus_is_sampled_whole(tmp_path):
    texts = [f"document {number}\n" * number for number in range(200)]
    documents = [lines_file(tmp_path, "a.jsonl", texts), text_file(tmp_path, "b.txt", b"text\n" * 50_000)]
    division = divide(documents, 0.1, 0)
    (head,) = division.texts["train"]
    sample = list(sample_text(division, OPTIONS, 4_000_000))
    blocks = [block.text for block in read_blocks(head)]
    assert sample[: len(blocks)] == blocks
    kept = sample[len(blocks) :]
    assert set("".join(kept).splitlines()) < set("".join(texts).splitlines())
    assert 0.85 < len("".join(kept)) / len("".join(texts)) < 0.95  # without the lines for validation


@pytest.mark.parametrize("length", [50, 1500, BLOCK_BYTES, 40 * BLOCK_BYTES])
def test_a_sample_is_spread_and_of_the_size_asked_for(tmp_path, length):
    num_lines = 8_000_000 // length
    lines = [json.dumps({"text": (f"{number} " * length)[:length]}) for number in range(num_lines)]
    content = ("\n".join(lines) + "\n").encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    division = divide([Document("a.jsonl", tmp_path / "a.jsonl", 0, len(content), "jsonl")], 0.1, 0)
    sample = list(sample_text(division, OPTIONS, 400_000))
    most = 800_000 if length > BLOCK_BYTES else 420_000  # blocks without a line end are twice as long
    assert 250_000 < sum(map(len, sample)) <= most
    numbers = {int(text.split(" ")[1]) for text in sample}
    tenths = {number * 10 // num_lines for number in numbers}
    assert len(tenths) >= 8
    assert max(len(text) for text in sample) <= 2 * BLOCK_BYTES
