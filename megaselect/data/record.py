"""PREFIX.json beside a dataset: which tokenizer wrote it, as `megaselect data prepare` recorded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError

_SPLITS = ("train", "valid", "test")

# Records are a few kilobytes. A larger PREFIX.json is somebody's text, from which the dataset was made.
_MAX_RECORD_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    path: Path
    vocab_size: int
    tokenizer_sha256: str | None
    splits: frozenset[str]


def read_record(prefix: str | Path) -> DatasetRecord | None:
    """The record beside the dataset; None where there is none, or PREFIX.json is something else."""
    content = _read(path := Path(f"{prefix}.json"))
    if content is None:
        return None
    sha256 = content.get("tokenizer_sha256")
    splits = frozenset(split for split in _SPLITS if split in content)
    return DatasetRecord(path, content["vocab_size"], sha256 if isinstance(sha256, str) else None, splits)


def describe_replaced(prefix: Path, sha256: str, options: dict[str, Any]) -> str | None:
    """A note of what the dataset at `prefix` is; None where there is none, or it has this content and these options."""
    content = _read(Path(f"{prefix}.json"))
    if content is None or (content.get("sha256"), content.get("options")) == (sha256, options):
        return None
    counts = [content[split] for split in _SPLITS if isinstance(content.get(split), dict)]
    documents, tokens = (sum(count.get(name, 0) for count in counts) for name in ("documents", "tokens"))
    return (
        f"note: the dataset {prefix}, of other text or made with other options, is replaced: documents: "
        f"{documents:,}, tokens: {tokens:,}, pieces of its tokenizer: {content['vocab_size']:,}."
    )


def _read(path: Path) -> dict[str, Any] | None:
    """The record in a file, None where there is none, or it is something else."""
    if not path.is_file() or path.stat().st_size > _MAX_RECORD_BYTES:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and type(content.get("vocab_size")) is int else None


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
