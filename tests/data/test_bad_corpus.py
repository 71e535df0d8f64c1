"""Input that cannot be prepared: one line, exit code 2, and nothing written."""

import gzip
import os
import tracemalloc

import pytest
import zstandard

from megaselect.cli.main import main
from megaselect.data.prepare import prepare
from megaselect.errors import DataError

GOOD = b'{"text": "good"}\n' * 5


def contents_of(name):
    return {
        "absent.jsonl": None,
        "empty.jsonl": b"",
        "empty.jsonl.gz": gzip.compress(b""),
        "binary.txt": b"a\0b",
        "binary.zst": zstandard.compress(b"a\0b"),
        "cut.jsonl.gz": gzip.compress(GOOD * 1000)[:-9],
        "cut.jsonl.zst": zstandard.compress(GOOD * 1000)[:-2],
        "cut.txt.gz": gzip.compress(b"text\n" * 100)[:12],
        "plain.jsonl.gz": GOOD,
        "field.jsonl": GOOD + b'{"body": "x"}\n',
        "array.jsonl": GOOD + b"[1]\n",
        "number.jsonl.gz": gzip.compress(GOOD + b'{"text": 1}\n'),
        "broken.jsonl.zst": zstandard.compress(GOOD * 9000 + b'{"text": "x"\n'),
        "blank.jsonl": b"\n  \n",
        "two.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "absent.jsonl",
            "cannot read the input: No such file or directory (ROOT/absent.jsonl); "
            "name text files, or directories of them, that can be read",
        ),
        ("empty.jsonl", "the input ROOT/empty.jsonl is empty; name text files in UTF-8, or a directory of them"),
        ("empty.jsonl.gz", "the input ROOT/empty.jsonl.gz is empty; name text files in UTF-8, or a directory of them"),
        ("binary.txt", "the input ROOT/binary.txt is binary; name text files in UTF-8, or a directory of them"),
        ("binary.zst", "the input ROOT/binary.zst is binary; name text files in UTF-8, or a directory of them"),
        (
            "cut.jsonl.gz",
            "ROOT/cut.jsonl.gz is damaged or was cut short (Compressed file ended before the end-of-stream marker was "
            "reached); compress it again, or get it anew",
        ),
        (
            "cut.jsonl.zst",
            "ROOT/cut.jsonl.zst is damaged or was cut short (it ends within a frame); "
            "compress it again, or get it anew",
        ),
        (
            "cut.txt.gz",
            "ROOT/cut.txt.gz is damaged or was cut short (Compressed file ended before the end-of-stream marker was "
            "reached); compress it again, or get it anew",
        ),
        (
            "plain.jsonl.gz",
            "ROOT/plain.jsonl.gz is damaged or was cut short (Not a gzipped file (b'{\"')); "
            "compress it again, or get it anew",
        ),
        (
            "field.jsonl",
            "ROOT/field.jsonl, line 6: there is no field 'text' (fields: 'body'); name the text's with --json-field",
        ),
        ("array.jsonl", "ROOT/array.jsonl, line 6: this is an array, not an object with the field 'text'"),
        (
            "number.jsonl.gz",
            "ROOT/number.jsonl.gz, line 6: the field 'text' is a number, not a string; "
            "name the text's with --json-field",
        ),
        (
            "broken.jsonl.zst",
            "ROOT/broken.jsonl.zst, line 45001: this is no JSON (Expecting ',' delimiter: line 1 column 13 (char 12)); "
            "every line must be an object with text",
        ),
        (
            "blank.jsonl",
            "ROOT/blank.jsonl (jsonl files: 1, bytes: 4): there is no document with text in it; "
            "name input that has one",
        ),
        (
            "two.jsonl",
            "ROOT/two.jsonl (jsonl files: 1, bytes: 32): --valid-fraction 0.05 and --test-fraction 0.01 would need "
            "3 documents, one for each split, but there are 2 (a document is never split, unless it is a text file of "
            "more than a few bytes); add documents, or set --test-fraction 0",
        ),
    ],
)
def test_input_that_is_refused(tmp_path, capsys, default_dataset, name, message):
    content = contents_of(name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    given = ["--tokenizer", str(default_dataset.tokenizer_path), "--test-fraction", "0.01", "--workers", "1"]
    status = main(["data", "prepare", "--input", str(tmp_path / name), "--output", str(tmp_path / "out" / "x"), *given])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.replace(str(tmp_path), "ROOT") == f"error: {message}\n"
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--test-fraction", "0.96"],
            "the test fraction is 0.96; it must not be negative, and leave text for training beside the validation "
            "fraction of 0.05",
        ),
        *(
            (
                ["--vocab-size", size, "--input", "ROOT/absent.txt"],
                f"--vocab-size {size}: must be 258 (the 256 bytes and two pieces of their own) or more, at most "
                "2147483647",
            )
            for size in ("-1", "0", "257", "2147483648")
        ),
        (["--workers", "0"], "the number of workers is 0; it must be 1 or more"),
        (
            ["--tokenizer", "ROOT/absent.model"],
            "cannot read the tokenizer: No such file or directory (ROOT/absent.model); "
            "name a sentencepiece .model file",
        ),
        (
            ["--tokenizer", "ROOT/text.txt"],
            "ROOT/text.txt is not a sentencepiece model; name a .model file that sentencepiece wrote",
        ),
    ],
)
def test_flags_that_are_refused(tmp_path, capsys, flags, message):
    (tmp_path / "text.txt").write_text("text\n" * 1000)
    flags = [flag.replace("ROOT", str(tmp_path)) for flag in flags]
    arguments = ["--input", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out" / "x"), *flags]
    assert main(["data", "prepare", *arguments]) == 2
    assert capsys.readouterr().err.replace(str(tmp_path), "ROOT") == f"error: {message}\n"
    assert list(tmp_path.glob("out/*")) == []


def test_a_bad_line_that_the_training_of_the_tokenizer_meets(tmp_path, capsys):
    (tmp_path / "lines.jsonl").write_bytes(contents_of("field.jsonl"))
    arguments = ["--input", str(tmp_path / "lines.jsonl"), "--output", str(tmp_path / "out" / "x")]
    assert main(["data", "prepare", *arguments]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/lines.jsonl, line 6: there is no field 'text' (fields: 'body'); "
        "name the text's with --json-field\n"
    )
    assert list(tmp_path.glob("out/*")) == []


def test_the_first_bad_line_is_named_whoever_meets_it(tmp_path, default_dataset):
    good = b'{"text": "%s"}\n' % (b"a good line " * 80)
    lines = [good] * 3000
    lines[1400] = lines[1900] = lines[2999] = b"{}\n"
    (tmp_path / "lines.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"lines\.jsonl, line 1401: there is no field 'text'"):
        prepare([tmp_path / "lines.jsonl"], tmp_path / "out", tokenizer=default_dataset.tokenizer_path, workers=3)
    assert [path.name for path in tmp_path.iterdir()] == ["lines.jsonl"]


def test_one_endless_line_takes_little_memory(tmp_path, default_dataset):
    """A line of text of any length is encoded in blocks; a line of JSON stops at a limit."""
    (tmp_path / "text.txt").write_bytes(b"word " * 400_000)
    with (tmp_path / "line.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(200_000_000)  # takes no room on the disk, and does not look binary at its beginning
        os.pwrite(file.fileno(), b" " * 9000, 10)
    model = default_dataset.tokenizer_path
    tracemalloc.start()
    prepare([tmp_path / "text.txt"], tmp_path / "out", tokenizer=model)
    text_peak = tracemalloc.get_traced_memory()[1]
    with pytest.raises(DataError, match=r"line\.jsonl, line 1: the line is longer than 16,777,216 bytes; split its"):
        prepare([tmp_path / "line.jsonl"], tmp_path / "out2", tokenizer=model)
    line_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text_peak < 15_000_000
    assert line_peak < 60_000_000  # about three times the limit
