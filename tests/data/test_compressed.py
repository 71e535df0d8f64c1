import gzip
import tracemalloc

import pytest
import zstandard

from megaselect.data.compressed import open_text
from megaselect.errors import DataError

TEXT = b"".join(b"line %d of a text that compresses, but not to nothing\n" % number for number in range(20_000))


def several_frames(text):
    half = len(text) // 2
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"  # as pzstd writes between frames
    return zstandard.compress(text[:half]) + skippable + zstandard.compress(text[half:])


COMPRESSED = {
    "plain.txt": lambda text: text,
    "one.gz": gzip.compress,
    "members.GZ": lambda text: gzip.compress(text[:1000]) + gzip.compress(text[1000:]),
    "one.zst": zstandard.compress,
    "frames.txt.zst": several_frames,
    # Frames that do not tell how long their content is, as a pipe into `zstd` makes them.
    "stream.zst": lambda text: (stream := zstandard.ZstdCompressor().compressobj()).compress(text) + stream.flush(),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_text_from_any_place(tmp_path, name):
    (tmp_path / name).write_bytes(COMPRESSED[name](TEXT))
    for start in (0, 1, 300_001, len(TEXT) - 1, len(TEXT)):
        with open_text(tmp_path / name, start) as file:
            assert file.readline() == TEXT[start:].split(b"\n")[0] + (b"\n" if start < len(TEXT) else b"")
            assert file.read() == TEXT[start:].partition(b"\n")[2]


@pytest.mark.parametrize("name", ["one.gz", "one.zst", "frames.txt.zst", "stream.zst"])
def test_a_file_that_was_cut_anywhere(tmp_path, name):
    text = b"a line\n" * 20
    content = COMPRESSED[name](text)
    whole = {len(zstandard.compress(text[: len(text) // 2]))} if name == "frames.txt.zst" else set()
    whole |= {size + 11 for size in whole}  # after the skippable frame
    for size in set(range(1, len(content))) - whole:
        (tmp_path / name).write_bytes(content[:size])
        with open_text(tmp_path / name) as file, pytest.raises(DataError) as caught:
            file.read()
        assert str(caught.value).startswith(f"{tmp_path / name} is damaged or was cut short (")
        assert str(caught.value).endswith("); compress it again, or get it anew")


@pytest.mark.parametrize("name", ["one.gz", "one.zst"])
def test_bytes_that_were_changed_are_seen_or_harmless(tmp_path, name):
    compress = gzip.compress if name == "one.gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    content = compress(TEXT[:3000])
    num_seen = 0
    for position in range(len(content)):
        (tmp_path / name).write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with open_text(tmp_path / name) as file:
            try:
                text = file.read()
            except DataError:
                num_seen += 1
            else:
                assert text == TEXT[:3000]  # a name or a time in the header
    assert num_seen > len(content) - 12


def test_text_under_a_compressed_name(tmp_path):
    for name in ("text.gz", "text.zst"):
        (tmp_path / name).write_bytes(TEXT[:1000])
        with open_text(tmp_path / name) as file, pytest.raises(DataError, match=rf"{name} is damaged or was cut short"):
            file.read(1)


@pytest.mark.parametrize("name", ["bomb.gz", "bomb.zst"])
def test_text_that_compresses_to_almost_nothing_takes_little_memory(tmp_path, name):
    num_bytes = 100_000_000
    (tmp_path / name).write_bytes(COMPRESSED["one" + name[4:]](b"a" * num_bytes))
    assert (tmp_path / name).stat().st_size < num_bytes / 1000 + 10_000
    tracemalloc.start()
    with open_text(tmp_path / name) as file:
        assert sum(map(len, iter(lambda: file.read(1_000_000), b""))) == num_bytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 1,024 bytes of zstandard stand for 32 MiB at most; twice that while they are joined.
    assert peak < 80_000_000
