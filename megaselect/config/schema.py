"""The schema. Each field's description is also its line in `--help`; `off` is what the word off means for it.

A section is a file with its rules; here are the whole, and the rules between sections.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from megaselect.config.data import DataConfig
from megaselect.config.format_value import one_line_errors
from megaselect.config.layers import parse_layers
from megaselect.config.logging import LoggingConfig
from megaselect.config.messages import explain
from megaselect.config.model import FOLLOWING, ModelConfig
from megaselect.config.origins import Origins, merge
from megaselect.config.parallel import ParallelConfig
from megaselect.config.recompute import SETTINGS_OF_MODE, RecomputeConfig
from megaselect.config.setting_error import SettingError, located
from megaselect.config.shipped import find_config
from megaselect.config.training import TrainingConfig
from megaselect.config.yaml_file import read_yaml
from megaselect.units import parse_steps


class Config(BaseModel):
    """A whole run, frozen and validated. Build it with from_yaml or from_dict: their errors name file and flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    recompute: RecomputeConfig = Field(default_factory=RecomputeConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @model_validator(mode="after")
    def _fill_and_check(self) -> Self:
        if self.model.vocab_size is None:  # until the data is known: as that of the default corpus
            self.model.fill("vocab_size", self.data.vocab_size)
        check_across_sections(self)
        return self

    @classmethod
    @one_line_errors()
    def from_yaml(
        cls, path: str | Path, overrides: Mapping[str, Any] | None = None, flags: Mapping[str, str] | None = None
    ) -> Self:
        """Read a YAML file, or a shipped config by its name, such as tiny. Raises ConfigError.

        overrides: dotted name -> value; they win over the file. flags: dotted name -> the command-line flag that set
        it, for error messages.
        """
        found = find_config(path)
        return cls.from_dict(read_yaml(found), str(found), overrides, flags)

    @classmethod
    @one_line_errors()
    def from_dict(
        cls,
        mapping: Mapping[str, Any],
        source: str = "config",
        overrides: Mapping[str, Any] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> Self:
        """Validate a nested mapping; `overrides` (dotted names) win over it, `source` names it in a ConfigError.

        An overridden recompute.mode drops the mapping's settings that belong to another mode.
        """
        overrides = overrides or {}
        origins = Origins(source, {name: (flags or {}).get(name, f"override {name}") for name in overrides})
        names = [name for name, _ in iter_settings(cls)]
        try:
            return cls.model_validate(merge(mapping, overrides, origins))
        except ValidationError as error:
            raise explain(error, names, origins) from None
        except SettingError as error:
            raise origins.locate(error) from None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested values from which from_dict builds an equal config. Filled-in values are None again."""
        sections = self.model_dump(mode="json")
        for name in FOLLOWING:
            if name not in self.model.model_fields_set:
                sections["model"][name] = None
        recompute = sections["recompute"]
        kept = ("mode", *SETTINGS_OF_MODE[self.recompute.mode])
        sections["recompute"] = {name: recompute[name] for name in kept}
        return sections

    def to_yaml(self) -> str:
        """The same as to_dict, as a YAML document that from_yaml reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def iter_settings(schema: type[Config] = Config) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting in the order of the schema: dotted name and pydantic field."""
    for section, section_field in schema.model_fields.items():
        section_class: Any = section_field.annotation
        for name, field in section_class.model_fields.items():
            yield f"{section}.{name}", field


def check_across_sections(config: Config) -> None:
    """What recompute and data ask of the model exists in the model."""
    recompute, layers = config.recompute, config.model.num_layers
    if recompute.num_layers is not None and recompute.num_layers > layers:
        raise SettingError(
            f"recompute.num_layers ({recompute.num_layers}) is more than model.num_layers ({layers}); "
            f"use {layers} or fewer",
            "recompute.num_layers",
            "model.num_layers",
        )
    profile, last_step = config.logging.profile, config.training.max_steps
    if profile is not None and parse_steps(profile, "logging.profile")[0] > last_step:
        raise SettingError(
            f"logging.profile ({profile}) begins after training.max_steps ({last_step}); profile earlier steps, or "
            "train longer",
            "logging.profile",
            "training.max_steps",
        )
    if recompute.layers is not None:
        located(lambda: parse_layers(str(recompute.layers), layers), "recompute.layers", "model.num_layers")
