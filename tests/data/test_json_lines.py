import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaselect.data import json_lines
from megaselect.data.documents import BLOCK_BYTES, Document
from megaselect.data.json_lines import LineOptions, Lines, cut_lines, parse_lines, split_of_line
from megaselect.errors import DataError


def write(root, raw, name="a.jsonl"):
    (root / name).write_bytes(raw)
    return Document(name, root / name, 0, len(raw), "jsonl")


def parsed(document, **options):
    return [text for lines in cut_lines(document) for text in parse_lines(lines, LineOptions(**options))]


def texts(document, **options):
    return [text.raw.decode() for text in parsed(document, **options)]


def as_lines(raw, first_line=1):
    return Lines(raw, "a.jsonl", "jsonl", 0, first_line)


@given(st.lists(st.text()))
def test_every_text_comes_back(tmp_path_factory, documents):
    raw = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()
    assert texts(write(tmp_path_factory.mktemp("lines"), raw)) == documents


def test_groups_are_whole_lines_with_their_numbers(tmp_path):
    documents = ["x" * length for length in (10, BLOCK_BYTES, 3 * BLOCK_BYTES, 0, *range(100, 600))]
    raw = b"\n".join(json.dumps({"text": text}).encode() for text in documents)
    groups = list(cut_lines(write(tmp_path, raw)))
    assert b"".join(group.raw for group in groups) == raw
    assert len(groups) > 5
    line = 1
    for group in groups:
        assert group.first_line == line
        line += group.raw.count(b"\n")
    assert texts(write(tmp_path, raw)) == documents


def test_what_editors_leave_behind(tmp_path):
    raw = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"id": 1, "text": "b"}'
    assert texts(write(tmp_path, raw)) == ["a", "b"]


def test_files_that_were_joined_keep_their_byte_order_marks(tmp_path):
    raw = b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "\xef\xbb\xbfb"}\n\xef\xbb\xbf\n'
    assert texts(write(tmp_path, raw)) == ["a", "\ufeffb"]


def test_what_is_no_text_is_replaced_and_counted(tmp_path):
    raw = b'{"text": "caf\xe9 \\ud83d\\ude00 \xf0\x9f\x98"}\n{"text": "\\ud800 and \\udfff \\u0000"}\n'
    first, second = parsed(write(tmp_path, raw))
    assert (first.raw.decode(), first.replaced_bytes, first.replaced_surrogates) == (
        "caf\ufffd 😀 \ufffd\ufffd\ufffd",
        4,
        0,
    )
    assert (second.raw.decode(), second.replaced_bytes, second.replaced_surrogates) == ("\ufffd and \ufffd \0", 0, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": "cut',
            "this is no JSON (Unterminated string starting at: line 1 column 10 (char 9)); "
            "every line must be an object with text",
        ),
        (
            "plain text",
            "this is no JSON (Expecting value: line 1 column 1 (char 0)); every line must be an object with text",
        ),
        ('["text"]', "this is an array, not an object with the field 'text'"),
        ("null", "this is null, not an object with the field 'text'"),
        ("{}", "there is no field 'text' (fields: none); name the text's with --json-field"),
        (
            '{"body": "x", "id": 1}',
            "there is no field 'text' (fields: 'body', 'id'); name the text's with --json-field",
        ),
        (
            json.dumps(dict.fromkeys("abcdefghij", 1)),
            "there is no field 'text' (fields: 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', …); "
            "name the text's with --json-field",
        ),
        ('{"text": 7}', "the field 'text' is a number, not a string; name the text's with --json-field"),
        ('{"text": true}', "the field 'text' is a boolean, not a string; name the text's with --json-field"),
        ('{"text": {"a": 1}}', "the field 'text' is an object, not a string; name the text's with --json-field"),
    ],
)
def test_a_line_that_holds_no_document(line, message):
    raw = b'{"text": "good"}\n' * 41 + line.encode() + b'\n{"text": "good"}\n'
    with pytest.raises(DataError) as caught:
        list(parse_lines(as_lines(raw, first_line=100), LineOptions()))
    assert str(caught.value) == f"a.jsonl, line 141: {message}"


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a": ' * 100_000 + b"]", b'{"text": "a\tb"}', b"\0"])
def test_what_is_no_json_however_it_nests(line):
    with pytest.raises(DataError, match=r"^a\.jsonl, line 1: this is no JSON \("):
        list(parse_lines(as_lines(line), LineOptions()))


LIMITS = {
    "digits": b"9" * 5000,
    "negative": b"-" + b"9" * 5000,
    "digits within": b'{"a": [' + b"1" * 5000 + b"]}",
    "arrays": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a}": ' * 100_000 + b'"\\"]"' + b"}" * 100_000,
    "both": b"[" * 100_000 + b"8" * 5000 + b"]" * 100_000,
}


@pytest.mark.parametrize("value", LIMITS)
@pytest.mark.parametrize(
    "line", [b'{"id": %s, "text": "a [{\\" b"}', b'{"text": "a [{\\" b", "more": {"b": %s}, "x": []}']
)
def test_json_beyond_the_limits_of_pythons_reader(line, value):
    (text,) = parse_lines(as_lines(line % LIMITS[value]), LineOptions())
    assert text.raw == b'a [{" b'


def test_a_text_that_is_such_a_value_is_named_as_what_it_is():
    for value, kind in (
        (LIMITS["digits"], "a number"),
        (LIMITS["arrays"], "an array"),
        (LIMITS["objects"], "an object"),
    ):
        with pytest.raises(DataError) as caught:
            list(parse_lines(as_lines(b'{"text": %s}' % value), LineOptions()))
        remedy = "not a string; name the text's with --json-field"
        assert str(caught.value) == f"a.jsonl, line 1: the field 'text' is {kind}, {remedy}"


def test_null_is_a_document_without_text(tmp_path):
    found = parsed(write(tmp_path, b'{"text": null}\n{"text": ""}\n{"text": "a"}\n'))
    assert [(text.raw, text.is_null) for text in found] == [(b"", True), (b"", False), (b"a", False)]


def test_a_line_longer_than_can_be_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100_000)

    def line(num_bytes):
        return b'{"text": "' + b"x" * (num_bytes - 12) + b'"}'

    longest = b"\n".join([line(20), line(99_999), line(100_000)])
    assert [len(text) for text in texts(write(tmp_path, longest))] == [8, 99_987, 99_988]
    for too_long in (line(100_000) + b"\n", line(100_001), line(5_000_000)):
        document = write(tmp_path, b"\n".join([line(30), line(20), line(99_999), line(99_999), too_long]))
        with pytest.raises(DataError) as caught:
            texts(document)
        assert str(caught.value) == (
            f"{document.path}, line 5: the line is longer than 100,000 bytes; split its text into several lines, "
            "or write it to a text file of its own"
        )


def test_splits_follow_from_the_name_and_the_line():
    options = LineOptions(valid_fraction=0.05, test_fraction=0.01)
    for seed in (0, 1, 2**64 - 1, 0x123456789ABCDEF):
        splits = [split_of_line(seed, line, options) for line in range(1, 20_001)]
        assert abs(splits.count("valid") - 1000) <= 3
        assert abs(splits.count("test") - 200) <= 3
        lines = [line for line, split in enumerate(splits) if split == "valid"]
        assert max(later - line for line, later in pairwise(lines)) <= 34
    drawn = {tuple(split_of_line(seed, line, options) for line in range(40)) for seed in range(0, 2**64, 2**60)}
    assert len(drawn) == 16


def test_a_compressed_copy_is_split_like_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    plain = Document("d/a.jsonl", tmp_path / "a.jsonl", 0, 0, "jsonl")
    for suffix in (".gz", ".zst"):
        assert Document(f"d/a.jsonl{suffix}", plain.path, 0, 0, f"jsonl{suffix}").name_digest == plain.name_digest
    assert Document("d/a.jsonl.gz", plain.path, 0, 0, "text").name_digest != plain.name_digest
