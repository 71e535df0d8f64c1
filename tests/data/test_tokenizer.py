import io
import re

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from megaselect.data.tokenizer import Tokenizer, train_tokenizer
from megaselect.errors import DataError

SENTENCES = ["the cat sat on the mat\n", "the dog sat\ton the log\n"] * 10

# What tokenizers get wrong: white space of every kind, the piece for a space, bytes' names, control pieces, joiners.
AWKWARD = ["\n", "\r\n", "\r", "\t", " ", "  ", "▁", "\0", "</s>", "<unk>", "<0x0A>", "⁇", "▅", "\u2028", "\ufeff"]
AWKWARD += ["\ufffd", "\ufffe", "\u0301", "é", "def ", "self", "x" * 50, "👩‍👩‍👧", "日本", "\U0010ffff"]


def train_foreign(path, eos_id=2):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=20,
        eos_id=eos_id,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


@given(st.text())
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from(AWKWARD)).map("".join))
def test_awkward_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.end_of_document_id not in ids


def test_every_character_round_trips(tokenizer):
    planes = ["".join(map(chr, range(start, start + 0x400))) for start in range(0, 0x110000, 0x400)]
    planes = [plane for plane in planes if not "\ud800" <= plane[0] <= "\udfff"]
    assert [tokenizer.decode(ids.tolist()) for ids in tokenizer.encode_batch(planes)] == planes


def test_a_batch_is_encoded_like_its_texts(tokenizer):
    texts = ["", "▁", "def f(x):\n    return x▁\n", "▁▁ a", "plain"] * 20
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_words_are_single_pieces_and_indentation_is_one_a_space(tokenizer):
    for text in ("self", "return", " the"):
        assert len(tokenizer.encode(text)) == 1
    assert len(tokenizer.encode("    ")) == 4


def test_end_of_document_is_no_text(tokenizer):
    ids = [*tokenizer.encode("a "), tokenizer.end_of_document_id, *tokenizer.encode(" b")]
    assert tokenizer.decode(ids) == "a  b"


def test_vocabulary_has_the_size_asked_for(tokenizer, tmp_path):
    assert tokenizer.vocab_size == 4096
    (tmp_path / "small.model").write_bytes(train_tokenizer(SENTENCES, 280))
    assert Tokenizer(tmp_path / "small.model").vocab_size == 280


def test_training_is_deterministic_and_silent(capfd):
    assert train_tokenizer(SENTENCES, 280) == train_tokenizer(iter(SENTENCES), 280)
    assert capfd.readouterr() == ("", "")


TOO_LARGE = (
    "the text is too short for a vocabulary of {}: it has {} different pieces; "
    "set the vocabulary size to {}, or add text"
)
TOO_SMALL = (
    "a vocabulary of {} has no room for every byte and the text's common characters; "
    "set the vocabulary size to {} or more"
)


@pytest.mark.parametrize(("vocab_size", "message"), [(4096, TOO_LARGE), (200, TOO_SMALL)])
def test_a_vocabulary_that_does_not_fit_is_refused_with_one_that_does(vocab_size, message):
    with pytest.raises(DataError) as caught:
        train_tokenizer(SENTENCES, vocab_size)
    fitting = re.search(r"size to (\d+)", str(caught.value))[1]
    assert str(caught.value) == message.format(vocab_size, *[fitting] * (message.count("{}") - 1))
    assert train_tokenizer(SENTENCES, int(fitting))


def test_text_of_no_words_is_refused():
    with pytest.raises(DataError, match=r"^sentencepiece cannot train a vocabulary of 300 on this text: "):
        train_tokenizer([""], 300)


def test_a_model_without_byte_pieces_can_be_used(tmp_path):
    foreign = Tokenizer(train_foreign(tmp_path / "foreign.model"))
    assert foreign.decode(foreign.encode("the▁cat")) == "the cat"


def test_files_that_are_no_tokenizer(tmp_path):
    def message_of(path):
        with pytest.raises(DataError) as caught:
            Tokenizer(path)
        return str(caught.value).replace(str(path), "PATH")

    missing = "cannot read the tokenizer: No such file or directory (PATH); name a sentencepiece .model file"
    assert message_of(tmp_path / "absent.model") == missing
    not_a_model = "PATH is not a sentencepiece model; name a .model file that sentencepiece wrote"
    for number, content in enumerate([b"garbage", b""]):
        path = tmp_path / f"{number}.model"
        path.write_bytes(content)
        assert message_of(path) == not_a_model
    assert message_of(train_foreign(tmp_path / "endless.model", eos_id=-1)) == (
        "PATH has no end-of-sentence piece to put between documents; train one with eos_id set"
    )
