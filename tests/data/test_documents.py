import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaselect.data import documents
from megaselect.data.documents import (
    BLOCK_BYTES,
    Document,
    cut_blocks,
    decode,
    manifest_sha256,
    read_blocks,
    split_documents,
    split_three,
)


def write_documents(root, contents):
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return [Document.whole(root / name, name) for name in contents]


def text_of(document):
    return "".join(block.text for block in read_blocks(document))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a\r\nb\rc\n\n\td \n", id="line ends"),
        pytest.param("één ½ 😀\n" * 9000, id="lines"),
        pytest.param("é😀" * 30_000, id="no lines"),
        pytest.param("x" * BLOCK_BYTES, id="one block"),
        pytest.param("x" * (BLOCK_BYTES + 1), id="one byte more"),
    ],
)
def test_blocks_concatenate_to_the_file(tmp_path, text):
    (document,) = write_documents(tmp_path, {"a": text.encode()})
    blocks = list(read_blocks(document))
    assert "".join(block.text for block in blocks) == text
    assert [block.ends_document for block in blocks] == [False] * (len(blocks) - 1) + [True]
    assert sum(block.replaced_bytes for block in blocks) == 0
    assert max(len(block.text.encode()) for block in blocks) <= 2 * BLOCK_BYTES + 3


def test_blocks_end_where_lines_end(tmp_path):
    (document,) = write_documents(tmp_path, {"a": b"word " * 3 + b"\n" + b"123456789\n" * 10_000})
    assert all(block.text.endswith("\n") for block in read_blocks(document))


@pytest.mark.parametrize(
    ("content", "text", "replaced"),
    [
        (b"a\xffb", "a\ufffdb", 1),
        (b"\xe2\x82", "\ufffd\ufffd", 2),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd", 3),
        ("a\ufffdb".encode(), "a\ufffdb", 0),
        (b"x" * (BLOCK_BYTES - 1) + b"\xe2\x82", "x" * (BLOCK_BYTES - 1) + "\ufffd\ufffd", 2),
    ],
)
def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path, content, text, replaced):
    (document,) = write_documents(tmp_path, {"a": content})
    blocks = list(read_blocks(document))
    assert "".join(block.text for block in blocks) == text
    assert sum(block.replaced_bytes for block in blocks) == replaced


@given(st.binary() | st.text("aé€😀\n").map(str.encode), st.integers(1, 5))
def test_blocks_of_any_bytes_are_decoded_as_the_whole_is(content, block_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block_bytes)
        blocks = list(cut_blocks(io.BytesIO(content), len(content)))
    assert b"".join(block.raw for block in blocks) == content
    decoded = [decode(block.raw) for block in blocks]
    assert "".join(text for text, _ in decoded) == decode(content)[0]
    assert sum(replaced for _, replaced in decoded) == decode(content)[1]


def test_a_file_that_shrank_ends_early(tmp_path):
    (document,) = write_documents(tmp_path, {"a": b"long" * 10_000})
    document.path.write_bytes(b"short")
    blocks = list(read_blocks(document))
    assert "".join(block.text for block in blocks) == "short"
    assert blocks[-1].ends_document


def test_manifest_is_what_sha256sum_prints(tmp_path):
    documents = write_documents(tmp_path, {"a.txt": b"A", "b.txt": b"B"})
    lines = f"{hashlib.sha256(b'A').hexdigest()}  a.txt\n{hashlib.sha256(b'B').hexdigest()}  b.txt\n"
    assert manifest_sha256(documents) == hashlib.sha256(lines.encode()).hexdigest()


def test_many_files_are_split_whole(tmp_path):
    documents = write_documents(tmp_path, {f"{number:03}": b"x" * (number + 1) for number in range(200)})
    train, valid = split_documents(documents, 0.1)
    assert sorted([*train, *valid], key=documents.index) == documents
    assert not set(train) & set(valid)
    assert 0.095 < sum(document.num_bytes for document in valid) / 20_100 <= 0.1


def test_split_depends_on_names_and_not_on_order(tmp_path):
    documents = write_documents(tmp_path, {f"{number:03}": b"x" * 10 for number in range(100)})
    train, valid = split_documents(documents, 0.1)
    assert [document.name for document in valid] != [f"{number:03}" for number in range(90, 100)]
    assert split_documents(documents[::-1], 0.1) == (train[::-1], valid[::-1])


def test_the_tail_of_one_large_file_is_validation(tmp_path):
    documents = write_documents(tmp_path, {"large": bytes(range(64, 114)) * 20, "small": b"s" * 10})
    train, valid = split_documents(documents, 0.05)
    assert [document.name for document in valid] == ["small", "large"]
    assert sum(document.num_bytes for document in valid) == 50  # 5 % of 1,010, rounded
    assert text_of(train[0]) + text_of(valid[1]) == text_of(documents[0])


def test_a_file_of_one_character_moves_whole(tmp_path):
    train, valid = split_documents(write_documents(tmp_path, {"a": "😀".encode()}), 0.5)
    assert train == []
    assert [text_of(document) for document in valid] == ["😀"]


def test_three_splits_share_out_the_documents(tmp_path):
    many = write_documents(tmp_path, {f"{number:03}": b"x" * (number + 1) for number in range(200)})
    train, valid, test = split_three(many, 0.1, 0.05)
    assert sorted([*train, *valid, *test], key=many.index) == many
    assert 0.09 < sum(document.num_bytes for document in valid) / 20_100 <= 0.1
    assert 0.045 < sum(document.num_bytes for document in test) / 20_100 <= 0.05
    assert split_three(many, 0.1, 0.0) == (*split_documents(many, 0.1), [])


def test_one_file_gives_three_parts_in_order(tmp_path):
    (whole,) = write_documents(tmp_path, {"a": b"0123456789" * 10})
    (train,), (valid,), (test,) = split_three([whole], 0.1, 0.2)
    assert [(part.start, part.stop) for part in (train, valid, test)] == [(0, 70), (70, 80), (80, 100)]


@given(st.text("aé€😀", min_size=2), st.floats(0.01, 0.99))
def test_no_character_is_torn(tmp_path_factory, text, fraction):
    (document,) = write_documents(tmp_path_factory.mktemp("cut"), {"a": text.encode()})
    parts = [part for split in split_documents([document], fraction) for part in split]
    blocks = [block for part in parts for block in read_blocks(part)]
    assert "".join(block.text for block in blocks) == text
    assert sum(block.replaced_bytes for block in blocks) == 0
