"""Whatever the sentencepiece model: a document's tokens are those of its whole text, however it is cut on the way."""

import io
import json
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megaselect.data import seams
from megaselect.data import tokenizer as tokenizer_module
from megaselect.data.documents import BLOCK_BYTES, decode
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.model_settings import ModelSettings, read_model_settings
from megaselect.data.prepare import prepare
from megaselect.data.tokenizer import TextPart, Tokenizer
from megaselect.errors import DataError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "naïve", "😀", "日本", "aaaa", "\n", "\n\n", "\t", "  "]

PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
LLAMA = {**PLAIN, "byte_fallback": True}
MODELS = {
    "llama": LLAMA,
    "no bytes": PLAIN,
    "suffix": {**LLAMA, "treat_whitespace_as_suffix": True},
    "spaces": {**PLAIN, "allow_whitespace_only_pieces": True, "user_defined_symbols": ["at s", "\n\n", "<x>"]},
    "across words": {**LLAMA, "split_by_whitespace": False},
    "no dummy": {**PLAIN, "add_dummy_prefix": False},
    "removes spaces": {**LLAMA, "remove_extra_whitespaces": True},
    "as it comes": {},
    "unigram": {**LLAMA, "model_type": "unigram"},
    "unigram suffix": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
    "char": {**PLAIN, "model_type": "char"},
    "word": {"model_type": "word"},
}
CUT = {"llama", "no bytes", "suffix", "spaces", "across words", "no dummy", "char"}  # the others are encoded whole


def make_text(num_words, seed, more=()):
    draw = random.Random(seed)
    return "".join(draw.choice([*WORDS, *more]) + draw.choice([" ", " ", ""]) for _ in range(num_words))


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """Path of a model file; texts of the test have characters that it has not seen."""
    content = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 340, "hard_vocab_limit": False, "eos_id": 2, "minloglevel": 2}
    sentences = [make_text(60, seed) for seed in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=content, **options | MODELS[request.param]
    )
    path = tmp_path_factory.mktemp("model") / f"{request.param}.model"
    path.write_bytes(content.getvalue())
    return path


def test_a_prepared_document_is_its_text_encoded_and_the_end(model, tmp_path):
    """Longer than blocks with lines and without, with the space's own character, unknown ones, spaces at the ends."""
    unseen = ("▁", "zzz", "жж", "▁▁")
    texts = [
        make_text(20_000, 1, unseen),
        " " + make_text(9000, 2, unseen).replace("\n", " ") + " ",
        "▁x",
        "x" * 40_000,
        "жzq" * 9000,
        make_text(40, 3),
    ]
    root = tmp_path / "input"
    root.mkdir()
    for number, text in enumerate(texts):
        (root / f"{number}.txt").write_bytes(text.encode())
    (root / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    paths = prepare([root], tmp_path / "out", tokenizer=model, valid_fraction=0)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = [[*reference.encode(text), reference.eos_id()] for text in texts * 2]
    assert [tokens.tolist() for tokens in IndexedDataset(paths.train_prefix)] == expected


def test_which_models_are_encoded_in_parts(model):
    blocks = list(Tokenizer(model).cut(io.BytesIO(make_text(20_000, 1).encode()), 90_000))
    assert (len(blocks) > 4) == (model.stem in CUT)
    if model.stem in CUT:
        assert max(len(block.raw) for block in blocks) < BLOCK_BYTES + 100


@given(st.lists(st.sampled_from([*WORDS, "▁", " ", "at", "s", "<x>", "ж", "\udc80", "\udce9"])), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_parts_of_any_size_give_the_tokens_of_the_whole(model, words, block_bytes):
    raw = "".join(words).encode(errors="surrogateescape")
    tokenizer = Tokenizer(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seams, "BLOCK_BYTES", block_bytes)
        blocks = list(tokenizer.cut(io.BytesIO(raw), len(raw)))
    assert b"".join(block.raw for block in blocks) == raw
    assert [block.starts_document for block in blocks] == [True, *[False] * (len(blocks) - 1)][: len(blocks)]
    assert [block.ends_document for block in blocks] == [*[False] * (len(blocks) - 1), True][-len(blocks) or 1 :]
    parts = [TextPart(decode(block.raw)[0], block.starts_document, block.ends_document) for block in blocks]
    ids = [token for part in tokenizer.encode_parts(parts) for token in part.tolist()]
    assert ids == tokenizer.encode(decode(raw)[0])
    assert ids == sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(decode(raw)[0])


def test_the_default_tokenizer_is_cut_where_no_piece_is(tokenizer):
    """Not at the ends of lines, which pieces hold as they hold other characters."""
    text = "x = [1]\n\nclass A:\n    pass\n▁\n" * 8000
    blocks = list(tokenizer.cut(io.BytesIO(text.encode()), len(text.encode())))
    assert len(blocks) > 8
    assert not any(block.seamless for block in blocks)
    parts = [TextPart(block.raw.decode(), block.starts_document, block.ends_document) for block in blocks]
    ids = [token for part in tokenizer.encode_parts(parts, 1) for token in part.tolist()]
    assert ids == tokenizer.encode(text)
    assert tokenizer.decode(ids) == text


def test_text_without_a_seam_is_cut_and_counted(tmp_path, default_dataset, monkeypatch, capsys):
    from megaselect.cli.main import main

    monkeypatch.setattr(seams, "MAX_SEAMLESS_CHARACTERS", 50_000)
    (tmp_path / "long.txt").write_text("=" * 200_000)
    given = ["--tokenizer", str(default_dataset.tokenizer_path), "--valid-fraction", "0", "--workers", "1"]
    command = ["data", "prepare", "--input", str(tmp_path / "long.txt"), "--output", str(tmp_path / "out"), *given]
    assert main(command) == 0
    said = "places in documents where tokens may be others, cut where nothing parts the text: 3"
    assert capsys.readouterr().out.splitlines()[-1] == said
    model = Tokenizer(default_dataset.tokenizer_path)
    (document,) = IndexedDataset(tmp_path / "out")
    assert model.decode(document.tolist()) == "=" * 200_000


def test_a_document_too_long_for_a_model_that_takes_it_whole(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "MAX_WHOLE_BYTES", 100)
    (tmp_path / "a.txt").write_text("the cat " * 13)
    (tmp_path / "b.txt").write_text("a mat")
    if model.stem in CUT:
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", tokenizer=model, valid_fraction=0)
        return
    with pytest.raises(DataError) as caught:
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", tokenizer=model, valid_fraction=0)
    kind = {"removes spaces": "bpe", "as it comes": "bpe", "unigram suffix": "unigram"}.get(model.stem, model.stem)
    normalises = " that normalises text" if model.stem != "unigram" else ""
    assert str(caught.value) == (
        f"{tmp_path}/a.txt is a document of 104 bytes, and the tokenizer, a {kind} model{normalises}, encodes a "
        "document in one go, 100 bytes at most; split the file, or write its parts as lines of a .jsonl file"
    )


def test_settings_are_those_the_model_was_trained_with(model, tokenizer):
    given = {"model_type": "bpe"} | MODELS[model.stem]
    assert read_model_settings(model.read_bytes()) == ModelSettings(
        type=given["model_type"],
        byte_fallback=given.get("byte_fallback", False),
        keeps_text="normalization_rule_name" in given and not given["remove_extra_whitespaces"],
        dummy_space=given.get("add_dummy_prefix", True),
        space_as_suffix=given.get("treat_whitespace_as_suffix", False),
    )
    assert read_model_settings(tokenizer.model_file) == ModelSettings("bpe", True, True, False, False)


@pytest.mark.parametrize("content", [b"\x0a\x05abc", b"\x80", b"\x0b", b"\x09\0"])
def test_what_is_no_protocol_buffer(content):
    with pytest.raises(ValueError, match=r"^no protocol buffer$"):
        read_model_settings(content)
