"""What every section of the schema has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

NUMBER_BITS = 64


class Section(BaseModel):
    """Base of the sections: frozen, unknown keys refused, and no number read from a YAML switch word."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_switch_words(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads off, no, on and yes as bool, which pydantic would go on to read as the numbers 0 and 1."""
        field = cls.model_fields[info.field_name or ""]
        if (value is False or value == "off") and isinstance(field.json_schema_extra, dict):
            return field.json_schema_extra["off"]
        if isinstance(value, bool) and field.annotation is not bool:
            raise PydanticCustomError("switch_word", "switch word")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_huge_numbers(cls, value: Any) -> Any:
        """Python has no largest number, and others do not write or divide one of thousands of digits in no time."""
        if type(value) is int and value.bit_length() > NUMBER_BITS:
            raise PydanticCustomError("too_large", "too large")
        return value
