"""A byte-pair tokenizer of sentencepiece's that gives back exactly the text it was given.

Sentencepiece normalises text, drops spaces and treats lines as sentences unless told otherwise. Here it is told
otherwise, and characters that are no piece of their own are spelt as UTF-8 bytes, so that every string round-trips:
tabs, line ends, runs of spaces, NUL, emoji. (Lone surrogates are no text: Python cannot encode them either.)
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice
from operator import not_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

from megaselect.data.documents import Cutter
from megaselect.data.model_settings import ModelSettings, read_model_settings
from megaselect.data.os_errors import explain_os_errors
from megaselect.data.seams import Seams, cut_nowhere
from megaselect.errors import DataError

# Sentencepiece writes a space as this character inside pieces, and so would decode a real one to a space.
_META_SPACE = "\u2581"

_TRAINER_SETTINGS: dict[str, Any] = {
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


# Sentencepiece takes 35 bytes of memory a byte of what it encodes in one go, and counts them in 32 bits.
MAX_WHOLE_BYTES = 256 * 1024 * 1024


class TextPart(NamedTuple):
    """A document's text, or a part of it that `Tokenizer.cut` cut off."""

    text: str
    starts_document: bool = True
    ends_document: bool = True


class Tokenizer:
    """A sentencepiece model file. Models of other makers work too; what they normalise does not round-trip.

    model_file: its content. sha256: of that. cut: cuts text into parts whose tokens are those of the whole.
    """

    cut: Cutter

    def __init__(self, path: str | Path) -> None:
        self.model_file = _read(path)
        self.sha256 = hashlib.sha256(self.model_file).hexdigest()
        self._processor, self._settings = _load(path, self.model_file)
        self.vocab_size: int = self._processor.vocab_size()
        self.end_of_document_id: int = self._processor.eos_id()
        if self.end_of_document_id < 0:
            raise DataError(f"{path} has no end-of-sentence piece to put between documents; train one with eos_id set")
        self.cuts_documents = self._settings.keeps_text and self._settings.type in ("bpe", "char")
        self.cut = self._seams().cut if self.cuts_documents else cut_nowhere
        self._inner_processor = self._processor
        if self.cuts_documents and self._settings.dummy_space:
            self._inner_processor = sentencepiece.SentencePieceProcessor(model_proto=self.model_file)
            self._inner_processor.override_normalizer_spec(add_dummy_prefix=False)
        self._meta_ids = self._find_meta_ids()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        """Ids of each text ([n] i32), found on `num_threads` threads: -1 for as many as there are cores."""
        return self.encode_parts([TextPart(text) for text in texts], num_threads)

    def encode_parts(self, parts: Sequence[TextPart], num_threads: int = -1) -> list[np.ndarray]:
        """Ids of each part: those of a document's parts, one after the other, are those of its text."""
        texts = [part.text for part in parts]
        if self._meta_ids is not None:
            return self._encode_meta(self._meta_ids, texts, num_threads)
        # A space that the model puts before a text, or behind it, belongs to the document and not to its parts.
        at_edge = [part.ends_document if self._settings.space_as_suffix else part.starts_document for part in parts]
        edges = iter(_encode(self._processor, list(compress(texts, at_edge)), num_threads))
        inner = iter(_encode(self._inner_processor, list(compress(texts, map(not_, at_edge))), num_threads))
        return [next(edges if edge else inner) for edge in at_edge]

    def check_length(self, path: Path, num_bytes: int) -> None:
        """Raise DataError for a document that is too long to be encoded. path: of its file, for the message."""
        if not self.cuts_documents and num_bytes > MAX_WHOLE_BYTES:
            raise DataError(
                f"{path} is a document of {num_bytes:,} bytes, and the tokenizer, a {self._settings.type} model"
                f"{'' if self._settings.keeps_text else ' that normalises text'}, encodes a document in one go, "
                f"{MAX_WHOLE_BYTES:,} bytes at most; split the file, or write its parts as lines of a .jsonl file"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 together become U+FFFD, the end of a document nothing."""
        return self._processor.decode(list(ids))

    def _seams(self) -> Seams:
        tokens = range(self.vocab_size)
        special = (self._processor.is_control, self._processor.is_unknown, self._processor.is_byte)
        pieces = [self._processor.id_to_piece(token) for token in tokens if not any(kind(token) for kind in special)]
        return Seams(pieces, joins_unknown=not self._settings.byte_fallback)

    def _find_meta_ids(self) -> np.ndarray | None:
        """How the character is spelt that stands for a space in pieces; None where the model would not round-trip."""
        plain = self._settings.type == "bpe" and self._settings.keeps_text and not self._settings.dummy_space
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()]
        has_bytes = plain and all(map(self._processor.is_byte, ids))
        return np.asarray(ids, dtype=np.int32) if has_bytes else None

    def _encode_meta(self, meta_ids: np.ndarray, texts: list[str], num_threads: int) -> list[np.ndarray]:
        if not any(_META_SPACE in text for text in texts):
            return _encode(self._processor, texts, num_threads)
        parts = [text.split(_META_SPACE) for text in texts]
        encoded = iter(_encode(self._processor, [part for split in parts for part in split], num_threads))
        return [_join(meta_ids, islice(encoded, len(split))) for split in parts]


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


def _load(path: str | Path, content: bytes) -> tuple[sentencepiece.SentencePieceProcessor, ModelSettings]:
    refusal = DataError(f"{path} is not a sentencepiece model; name a .model file that sentencepiece wrote")
    # Sentencepiece takes an empty file for a valid model, and fails when it is used.
    if not content:
        raise refusal
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content), read_model_settings(content)
    except (RuntimeError, ValueError):
        raise refusal from None


def _encode(processor: sentencepiece.SentencePieceProcessor, texts: list[str], num_threads: int) -> list[np.ndarray]:
    return processor.encode(texts, num_threads=num_threads, return_type="numpy") if texts else []


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
