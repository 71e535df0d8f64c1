"""How many bytes of text each id of a tokenizer stands for."""

from __future__ import annotations

import numpy as np
import sentencepiece

from megaselect.data.tokenizer import Tokenizer


def piece_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes in UTF-8 of each piece as it is decoded, [v] int64.

    A space is one byte, a byte piece too; pieces that are no text, such as the end of a document, have none. So ids sum
    up to the bytes of their decoded text, but for what a decoder drops: a space that the tokenizer puts before a text.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_file)
    ids = list(range(tokenizer.vocab_size))
    lengths = np.array([len(piece.replace("\u2581", " ").encode()) for piece in processor.id_to_piece(ids)], np.int64)
    lengths[processor.is_byte(ids)] = 1
    lengths[processor.is_unknown(ids)] = len(processor.decode([processor.unk_id()]).encode())
    lengths[processor.is_control(ids)] = 0
    return lengths
