"""What stands in a checkpoint's JSON files, and how it is read without trust: strictly, and only where it fits."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from megaselect.config.replaced import upgraded
from megaselect.training.state import RunState

FORMAT_VERSION = 3
READ_VERSIONS = (2, 3)  # 2 is 3 in one process: without tensors that are cut
_LONGEST_TEXT = 400
_LARGEST_COUNT = 2**62  # of steps or samples; what is larger does not fit the tensors that hold sample indices


class Damage(Exception):
    """What is wrong with a checkpoint, in one line."""

    def __init__(self, problem: str) -> None:
        super().__init__(one_line(problem))


def one_line(text: str) -> str:
    """The same without line ends and signs that a terminal would obey: names in a damaged file may hold any."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[:_LONGEST_TEXT])
    return f"{shown} ..." if len(text) > _LONGEST_TEXT else shown


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")


class TensorRecord(_Record):
    """dtype: as safetensors calls it, such as F32. rows: where the file holds a part of the tensor, the first of its
    rows and how many the tensor has; shape is then the part's.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def whole(self) -> TensorRecord:
        """Of the tensor that this is a part of."""
        return TensorRecord(dtype=self.dtype, shape=(self.rows[1], *self.shape[1:]) if self.rows else self.shape)

    @property
    def span(self) -> range:
        """Its rows; a scalar has one."""
        count = self.shape[0] if self.shape else 1
        return range(self.rows[0], self.rows[0] + count) if self.rows else range(count)


class FileRecord(_Record):
    """Size, SHA-256 in hexadecimal, and the tensors in the file, by name."""

    bytes: int = Field(ge=0)
    sha256: str
    tensors: dict[str, TensorRecord] = Field(default_factory=dict)


class Manifest(_Record):
    """manifest.json. digest: SHA-256 of the other entries, so that the manifest tells its own damage."""

    format_version: int
    files: dict[str, FileRecord]
    digest: str

    @classmethod
    def of(cls, files: dict[str, FileRecord]) -> Self:
        """The manifest of these files, with its digest."""
        return cls(format_version=FORMAT_VERSION, files=files, digest="").sealed()

    def sealed(self) -> Self:
        """The same with the digest that belongs to it."""
        dumped = self.model_dump(mode="json", exclude={"digest"}, exclude_none=True)
        entries = json.dumps(dumped, sort_keys=True)
        return self.model_copy(update={"digest": hashlib.sha256(entries.encode()).hexdigest()})


class SavedState(_Record):
    """state.json. data_fingerprint: of the training data, see data.fingerprint.

    config: as Config.to_dict gives it; that of an earlier version is read as this version's.
    """

    state: RunState
    loss_scale: dict[str, int | float]
    config: dict[str, Any]
    data_fingerprint: str

    @field_validator("config")
    @classmethod
    def _upgrade(cls, config: dict[str, Any]) -> dict[str, Any]:
        return upgraded(config)

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        state = self.state
        counts = (state.step, state.next_sample, state.skipped_steps, state.best_step or 0)
        if not all(0 <= count <= _LARGEST_COUNT for count in counts):
            raise ValueError("a count of steps or samples is out of range")
        return self


_R = TypeVar("_R", bound=_Record)


def read_record(kind: type[_R], text: bytes, name: str) -> _R:
    """The record in the JSON file of that name. Raises Damage."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Damage(f"{name} does not read: {where + ': ' if where else ''}{first['msg']}") from error
