"""A byte-pair tokenizer of sentencepiece's that gives back exactly the text it was given.

Sentencepiece normalises text, drops spaces and treats lines as sentences unless told otherwise. Here it is told
otherwise, and characters that are no piece of their own are spelt as UTF-8 bytes, so that every string round-trips:
tabs, line ends, runs of spaces, NUL, emoji. (Lone surrogates are no text: Python cannot encode them either.)
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import sentencepiece

from megaselect.data.files import explain_os_errors
from megaselect.errors import DataError

# Sentencepiece writes a space as this character inside pieces, and so would decode a real one to a space.
_META_SPACE = "\u2581"

_TRAINER_SETTINGS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "max_sentence_length": 2**20,  # bytes; longer ones are skipped, and blocks of text are far shorter
    "unk_id": 0,
    "eos_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "minloglevel": 2,
}


# A piece for each byte, the unknown one and the end of a document; and what sentencepiece can count.
MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 258, 2**31 - 1


class Tokenizer:
    """A sentencepiece model file. Models of other makers work too; what they normalise does not round-trip.

    model_file: its content. sha256: of that.
    """

    def __init__(self, path: str | Path) -> None:
        self.model_file = _read(path)
        self.sha256 = hashlib.sha256(self.model_file).hexdigest()
        self._processor = _load(path, self.model_file)
        self.vocab_size: int = self._processor.vocab_size()
        self.end_of_document_id: int = self._processor.eos_id()
        if self.end_of_document_id < 0:
            raise DataError(f"{path} has no end-of-sentence piece to put between documents; train one with eos_id set")
        meta_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()]
        has_bytes = all(map(self._processor.is_byte, meta_ids))
        self._meta_ids = np.asarray(meta_ids, dtype=np.int32) if has_bytes else None

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """Ids of each text ([n] i32), found on `num_threads` threads: -1 for as many as there are cores."""
        if self._meta_ids is None or not any(_META_SPACE in text for text in texts):
            return self._encode(list(texts), num_threads)
        parts = [text.split(_META_SPACE) for text in texts]
        encoded = iter(self._encode([part for split in parts for part in split], num_threads))
        return [_join(self._meta_ids, islice(encoded, len(split))) for split in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 together become U+FFFD, the end of a document nothing."""
        return self._processor.decode(list(ids))

    def _encode(self, texts: list[str], num_threads: int) -> list[np.ndarray]:
        return self._processor.encode(texts, num_threads=num_threads, return_type="numpy")


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Content of a model file with exactly `vocab_size` pieces. The same sentences give the same bytes."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **_TRAINER_SETTINGS
        )
    except RuntimeError as error:
        raise DataError(_explain_training_error(str(error), vocab_size)) from None
    return model.getvalue()


def _read(path: str | Path) -> bytes:
    with explain_os_errors("read the tokenizer", "name a sentencepiece .model file"):
        return Path(path).read_bytes()


def _load(path: str | Path, content: bytes) -> sentencepiece.SentencePieceProcessor:
    refusal = DataError(f"{path} is not a sentencepiece model; name a .model file that sentencepiece wrote")
    # Sentencepiece takes an empty file for a valid model, and fails when it is used.
    if not content:
        raise refusal
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise refusal from None


def _join(separator: np.ndarray, parts: Iterator[np.ndarray]) -> np.ndarray:
    joined = [next(parts)]
    for part in parts:
        joined += (separator, part)
    return np.concatenate(joined)


def _explain_training_error(message: str, vocab_size: int) -> str:
    if most := re.search(r"value <= (\d+)", message):
        return (
            f"the text is too short for a vocabulary of {vocab_size}: it has {most[1]} different pieces; "
            f"set the vocabulary size to {most[1]}, or add text"
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"a vocabulary of {vocab_size} has no room for every byte and the text's common characters; "
            f"set the vocabulary size to {least[1]} or more"
        )
    return f"sentencepiece cannot train a vocabulary of {vocab_size} on this text: {message}"
