"""What a sentencepiece model file says of itself: how text is normalised before it is encoded, and by which algorithm.

The library does not tell. The file is a protocol buffer, ModelProto of sentencepiece_model.proto; of its encoding
(https://protobuf.dev/programming-guides/encoding/) what finds a few fields is read here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_TRAINER, _NORMALIZER = 2, 3  # fields of ModelProto
_MODEL_TYPE, _BYTE_FALLBACK, _WHITESPACE_AS_SUFFIX = 3, 35, 24  # of TrainerSpec
_CHARACTER_MAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5  # of NormalizerSpec
_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # how a field's value is written


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """type: unigram, bpe, word or char. byte_fallback: characters that are no piece are spelt as bytes.

    keeps_text: no character is replaced, removed or joined with another one before encoding.
    dummy_space: a space is put before the text, or with space_as_suffix behind it.
    """

    type: str
    byte_fallback: bool
    keeps_text: bool
    dummy_space: bool
    space_as_suffix: bool


def read_model_settings(model_file: bytes) -> ModelSettings:
    """Settings of a model file's content. Raises ValueError where it is cut short or no protocol buffer."""
    try:
        model = dict(_fields(model_file))
        trainer, normalizer = (dict(_fields(_bytes(model.get(field, b"")))) for field in (_TRAINER, _NORMALIZER))
    except IndexError:
        raise ValueError("no protocol buffer") from None
    keeps_text = not normalizer.get(_CHARACTER_MAP) and not normalizer.get(_REMOVE_SPACES, True)
    return ModelSettings(
        type=_TYPES.get(int(trainer.get(_MODEL_TYPE, 1)), "unknown"),
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, False)),
        keeps_text=keeps_text and bool(normalizer.get(_ESCAPE_SPACES, True)),
        dummy_space=bool(normalizer.get(_DUMMY_PREFIX, True)),
        space_as_suffix=bool(trainer.get(_WHITESPACE_AS_SUFFIX, False)),
    )


def _bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b""


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message, in its order. Raises IndexError where it ends within one."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind not in (_BYTES, _EIGHT_BYTES, _FOUR_BYTES):
            raise IndexError(f"field {number} is written in the unknown way {kind}")
        length, at = _varint(message, at) if kind == _BYTES else ({_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind], at)
        if at + length > len(message):
            raise IndexError(f"field {number} is cut short")
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
