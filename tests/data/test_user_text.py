import os

import pytest

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
