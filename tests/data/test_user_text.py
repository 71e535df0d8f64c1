import gzip
import os

import pytest
import zstandard

from megaselect.data.user_text import find_files
from megaselect.errors import DataError


def write_tree(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_files_and_directories(tmp_path):
    write_tree(tmp_path, {"books/b.txt": b"b", "books/a/z.md": b"z", "books/.git/x": b"x", "books/.hidden": b"x"})
    write_tree(tmp_path, {"books/empty": b"", "books/picture": b"\x89PNG\0\0", "c.txt": b"ccc"})
    write_tree(tmp_path, {"books/wide.txt": "日".encode("utf-16")})
    files, num_binary = find_files([tmp_path / "c.txt", tmp_path / "books"])
    assert files == [
        ("a/z.md", tmp_path / "books" / "a" / "z.md", "text"),
        ("b.txt", tmp_path / "books" / "b.txt", "text"),
        ("c.txt", tmp_path / "c.txt", "text"),
    ]
    assert num_binary == 2


def test_a_file_reached_twice_counts_once(tmp_path):
    write_tree(tmp_path, {"books/a.txt": b"a"})
    (tmp_path / "books" / "link.txt").symlink_to(tmp_path / "books" / "a.txt")
    files, _ = find_files([tmp_path / "books", tmp_path / "books" / "a.txt", tmp_path / "books"])
    assert len(files) == 1


def test_pipes_and_dangling_links_in_a_directory_are_passed_over(tmp_path):
    write_tree(tmp_path, {"a.txt": b"a"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    assert [file.name for file in find_files([tmp_path])[0]] == ["a.txt"]


def names_of(root, **options):
    return [file.name for file in find_files([root], **options)[0]]


def test_links_to_directories_are_followed_and_each_is_read_once(tmp_path):
    root = tmp_path / "books"
    write_tree(tmp_path, {"books/a.txt": b"a", "books/in/b.txt": b"b", "far/c.txt": b"c", "far/deep/d.txt": b"d"})
    write_tree(tmp_path, {"far/.git/x.txt": b"x", "books/.hidden/x.txt": b"x"})
    (root / "zfar").symlink_to(tmp_path / "far")
    (root / "afar").symlink_to(tmp_path / "far" / "deep")
    (root / "in" / "again").symlink_to(tmp_path / "far")
    (root / "in" / "up").symlink_to(root)
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(root / "in")
    (root / "self").symlink_to(root / "self")
    assert names_of(root) == ["a.txt", "afar/d.txt", "in/b.txt", "zfar/c.txt"]
    (tmp_path / "link").symlink_to(root)
    assert names_of(tmp_path / "link") == names_of(root)


def test_a_file_has_the_name_it_has_and_not_a_links(tmp_path):
    write_tree(tmp_path, {"z/z.txt": b"z"})
    (tmp_path / "a.txt").symlink_to(tmp_path / "z" / "z.txt")
    assert names_of(tmp_path) == ["z/z.txt"]


LINES = b'{"text": "a", "n": 1}\n{"text": "b"}\n'
OTHER_FIELD = b'{"body": "a"}\n{"body": "b"}\n'
PRETTY = b'{\n  "text": "a"\n}\n'


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("c4-train.00000-of-01024.json.gz", gzip.compress(LINES), "jsonl.gz"),
        ("a.json", LINES, "jsonl"),
        ("a.json", OTHER_FIELD, "jsonl"),
        ("a.JSON.zst", zstandard.compress(b'{"text": "one line"}'), "jsonl.zst"),
        ("a.json", b"\xef\xbb\xbf\r\n  \n" + LINES, "jsonl"),
        ("a.json", b'{"text": "%s"}\n' % (b"long " * 100_000), "jsonl"),
        ("a.json.00017", b'{"id": 1}', "jsonl"),
        ("a.ndjson", PRETTY, "jsonl"),  # and its first line will be refused
        ("a.jsonlines.gz", gzip.compress(OTHER_FIELD), "jsonl.gz"),
        ("a.jsonl.gz.zst", zstandard.compress(gzip.compress(LINES)), "jsonl.gz.zst"),
        ("c4-00000.gz", gzip.compress(LINES), "jsonl.gz"),
        ("a.txt", LINES, "jsonl"),
        ("a.txt", OTHER_FIELD, "jsonl"),
        ("a.txt", b'{"body": "a"}', "text"),
        ("a.txt", PRETTY, "text"),
        ("a.txt", b'{"body": "a"}\nand more\n', "text"),
        ("a.json.md", b"# JSON", "text"),
        ("a.txt.gz", gzip.compress(b"text"), "text.gz"),
    ],
)
def test_json_lines_are_told_by_name_or_by_content(tmp_path, name, content, kind):
    write_tree(tmp_path, {name: content})
    assert [file.kind for file in find_files([tmp_path])[0]] == [kind]


@pytest.mark.parametrize("content", [PRETTY, b'[{"text": "a"}]', b"[\n]", b'"text"', b'{"text": "a"', b"// no\n{}"])
def test_other_json_is_refused_with_the_flag_that_says_what_it_is(tmp_path, content):
    write_tree(tmp_path, {"d/a.json": content, "d/b.txt": b"b"})
    with pytest.raises(DataError) as caught:
        find_files([tmp_path / "d"])
    assert str(caught.value) == (
        f"the input {tmp_path}/d/a.json is not JSON Lines, an object with text on every line, as .json files with text "
        "are; write it so, or give --json-files text to take .json files as text, with all that is in them, or "
        "--json-files lines if it is"
    )
    for json_files, kind in (("text", "text"), ("lines", "jsonl")):
        files, _ = find_files([tmp_path / "d"], json_files=json_files)
        assert [file.kind for file in files] == [kind, "text"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "absent.txt",
            "cannot read the input: No such file or directory (ROOT/absent.txt); "
            "name text files, or directories of them, that can be read",
        ),
        ("empty.txt", "the input ROOT/empty.txt is empty; name text files in UTF-8, or a directory of them"),
        ("binary.txt", "the input ROOT/binary.txt is binary; name text files in UTF-8, or a directory of them"),
        ("le.txt", "the input ROOT/le.txt is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        ("be.txt", "the input ROOT/be.txt is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        ("32.txt", "the input ROOT/32.txt is UTF-32; convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
        ("nothing", "the input ROOT/nothing holds no text; name text files in UTF-8, or a directory of them"),
    ],
)
def test_input_that_is_no_text(tmp_path, name, message):
    write_tree(tmp_path, {"empty.txt": b"", "binary.txt": b"a\0b", "nothing/.hidden": b"x", "good.txt": b"good"})
    # Characters without a NUL byte, too.
    encoded = {"le.txt": "\ufeff日本".encode("utf-16-le"), "be.txt": "\ufeffab".encode("utf-16-be")}
    write_tree(tmp_path, encoded | {"32.txt": "\ufeffab".encode("utf-32-le")})
    with pytest.raises(DataError) as caught:
        find_files([tmp_path / name])
    assert str(caught.value).replace(str(tmp_path), "ROOT") == message
