"""PREFIX.json beside a dataset: which tokenizer wrote it, as `megaselect data prepare` recorded."""

import json
from dataclasses import dataclass
from pathlib import Path

from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError

# Records are a few kilobytes. A larger PREFIX.json is somebody's text, from which the dataset was made.
_MAX_RECORD_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    path: Path
    vocab_size: int
    tokenizer_sha256: str | None


def read_record(prefix: str | Path) -> DatasetRecord | None:
    """The record beside the dataset; None where there is none, or PREFIX.json is something else."""
    path = Path(f"{prefix}.json")
    if not path.is_file() or path.stat().st_size > _MAX_RECORD_BYTES:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or type(content.get("vocab_size")) is not int:
        return None
    sha256 = content.get("tokenizer_sha256")
    return DatasetRecord(path, content["vocab_size"], sha256 if isinstance(sha256, str) else None)


def check_record(prefix: str | Path, tokenizer_path: Path | None, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    """Raise DataError where the record tells that the dataset was written with another tokenizer, or a larger one.

    vocab_size: of the model. Reads the record and the tokenizer, and no tokens.
    """
    record = read_record(prefix)
    if record is None:
        return
    if tokenizer is None or tokenizer_path is None:
        if record.vocab_size > vocab_size:
            raise DataError(
                f"{record.path} says that {prefix} was written with a tokenizer of {record.vocab_size} pieces, but "
                f"model.vocab_size is {vocab_size}: raise model.vocab_size"
            )
        return
    remedy = "name the one it was written with (data.tokenizer), or prepare the data again"
    if record.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"{prefix} was written with a tokenizer of {record.vocab_size} pieces ({record.path}), but "
            f"{tokenizer_path} has {tokenizer.vocab_size}; {remedy}"
        )
    if record.tokenizer_sha256 not in (None, tokenizer.sha256):
        raise DataError(
            f"{prefix} was written with another tokenizer than {tokenizer_path}, by the checksum in {record.path}; "
            f"{remedy}"
        )
