"""The configs that benchmarks run: those of configs/ or other YAML files, at other sizes and under other settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.settings import RECOMPUTE, BenchmarkSetting
from megaselect.cli.flags import find_config
from megaselect.config import Config


@dataclass(frozen=True)
class NamedConfig:
    """name: of the file, for reports. own_length: the sequence length that the file names, whatever it runs with."""

    name: str
    config: Config
    own_length: int

    def sized(self, sequence: int | None = None, micro_batch: int | None = None) -> NamedConfig:
        """With another sequence length or micro-batch size, where given."""
        return dataclasses.replace(self, config=sized(self.config, sequence, micro_batch))


def read_config(name: str, overrides: Mapping[str, Any] | None = None) -> NamedConfig:
    """configs/NAME.yaml, or the YAML file that `name` is a path of. overrides: by dotted names.

    Raises ConfigError where there is no such file, and for what the schema refuses.
    """
    path = find_config(name)
    config = Config.from_yaml(path, overrides)
    return NamedConfig(path.stem, config, config.model.seq_length)


def sized(config: Config, sequence: int | None = None, micro_batch: int | None = None) -> Config:
    """With another sequence length or micro-batch size, where given; a step is then one micro-batch."""
    sections = config.to_dict()
    if sequence is not None:
        sections["model"]["seq_length"] = sequence
    if micro_batch is not None:
        sections["training"] |= {"micro_batch_size": micro_batch, "global_batch_size": micro_batch}
    return Config.from_dict(sections)


def under(config: Config, setting: BenchmarkSetting) -> Config:
    """The same model and batch under a setting. sdpa has no attention dropout; the hidden dropout stays."""
    sections = config.to_dict()
    sections["model"]["attention"] = setting.attention
    if setting.attention == "sdpa":
        sections["model"]["attention_dropout_p"] = 0.0
    sections["training"]["compile"] = setting.compiled
    sections["recompute"] = RECOMPUTE[setting.recompute]
    return Config.from_dict(sections)
