import gzip
import re
import tracemalloc

import pytest
import zstandard

from megaselect.data import zstd_frames
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
    "within.gz.ZST": lambda text: zstandard.compress(gzip.compress(text)),
    "within.zst.gz": lambda text: gzip.compress(zstandard.compress(text)),
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


@pytest.mark.parametrize("name", ["one.gz", "one.zst", "frames.txt.zst", "stream.zst", "within.zst.gz"])
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


def long_window(text):
    """As `zstd --long=31` writes what it does not know the length of."""
    settings = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return stream.compress(text) + stream.flush()


def test_a_window_of_two_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(zstd_frames, "available_bytes", lambda: 2**40)  # the text is short, however full the machine is
    content = long_window(TEXT)
    assert zstandard.get_frame_parameters(content).window_size == 2**31
    (tmp_path / "long.zst").write_bytes(zstandard.compress(b"before") + content)
    with open_text(tmp_path / "long.zst") as file:
        assert file.read() == b"before" + TEXT


READ_IN_A_GIGABYTE = """
import resource, sys
from pathlib import Path
from megaselect.data import zstd_frames
from megaselect.data.compressed import open_text
from megaselect.errors import DataError
if sys.argv[2] == "unaware":
    zstd_frames.available_bytes = lambda: 2**40
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    open_text(Path(sys.argv[1])).read()
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("who", ["aware", "unaware"])
def test_a_window_that_there_is_no_memory_for(tmp_path, start_python, who):
    path = tmp_path / "long.zst"
    path.write_bytes(long_window(TEXT))
    out, err = start_python(READ_IN_A_GIGABYTE, path, who).communicate()
    assert err == ""
    assert re.sub(r", and [0-9,]+ are free", "", out) == (
        f"{path} needs 2,147,483,648 bytes of memory to be decompressed, the window that it was compressed with; make "
        "room, or compress it again with a shorter one (zstd -d --long=31 -c FILE | zstd)\n"
    )
    assert ("are free" in out) == (who == "aware")


def test_a_frame_that_was_made_with_a_dictionary(tmp_path):
    dictionary = zstandard.train_dictionary(4096, [b"line %d of a text %d" % (n, n * n) * 3 for n in range(2000)])
    path = tmp_path / "dictionary.zst"
    path.write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT))
    with open_text(path) as file, pytest.raises(DataError) as caught:
        file.read()
    assert str(caught.value) == (
        f"{path} was compressed with a dictionary (number {dictionary.dict_id()}) that is not in it; decompress it "
        "with that (zstd -d -D DICTIONARY), and give the text"
    )
    raw = zstandard.ZstdCompressionDict(TEXT[:5000], zstandard.DICT_TYPE_RAWCONTENT)
    path.write_bytes(zstandard.ZstdCompressor(dict_data=raw).compress(TEXT))
    with open_text(path) as file, pytest.raises(DataError, match=r"or it was made with a dictionary that it does not"):
        file.read()
