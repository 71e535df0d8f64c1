"""The rows of a comparison: names of settings become configs that differ in attention and recompute alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from megaselect.config import Config, ModelConfig, RecomputeConfig
from megaselect.config.schema import MODULES
from megaselect.errors import ComparisonError
from megaselect.training.accounting import describe_recompute

# The modes of the config's attention, and what not to recompute is worth with the attentions that keep no scores.
DEFAULT_SETTINGS = (
    "none",
    "selective",
    "core_attn dropout",
    "all",
    "full",
    "fused none",
    "fused all",
    "sdpa none",
)
ATTENTIONS: tuple[str, ...] = get_args(ModelConfig.model_fields["attention"].annotation)
_DEFAULT_MODULES = RecomputeConfig.model_fields["modules"].default
_NAMED = {
    "none": {"mode": "none"},
    "selective": {"mode": "selective", "modules": _DEFAULT_MODULES},
    "all": {"mode": "selective", "modules": MODULES},
    "full": {"mode": "full"},
    "auto": {"mode": "auto"},
}
GRAMMAR = (
    f"a setting is {', '.join(list(_NAMED)[:-1])} or {list(_NAMED)[-1]}, or names of modules "
    f"({', '.join(MODULES)}), with {', '.join(ATTENTIONS[:-1])} or {ATTENTIONS[-1]} before it for another attention"
)


@dataclass(frozen=True)
class Row:
    """A setting to run. note: in what it differs from the config besides attention and recompute."""

    name: str
    config: Config
    note: str | None = None


def make_rows(config: Config, names: Sequence[str]) -> list[Row]:
    """Rows in the order of `names`, each once; then the config's own setting, where it is none of them.

    A name without an attention means the config's. none of an attention stands before its other settings, whether
    it is named or not: they are compared with it. Raises ComparisonError for a name that means nothing.
    """
    wanted = [_parse(name, config) for name in names]
    if config.recompute.mode != "none":
        wanted.append((config.model.attention, config.to_dict()["recompute"]))
    rows: dict[str, Row] = {}
    for attention, recompute in wanted:
        for section in (_NAMED["none"], recompute):
            row = _row(config, attention, section)
            rows.setdefault(row.name, row)
    return list(rows.values())


def _parse(name: str, config: Config) -> tuple[str, dict[str, Any]]:
    """(attention, recompute section) that a name means."""
    words = name.split()
    attention = words.pop(0) if words and words[0] in ATTENTIONS else config.model.attention
    rest = " ".join(words)
    if rest == config.recompute.mode == "auto":
        return attention, config.to_dict()["recompute"]  # with its budget
    if rest in _NAMED:
        return attention, _NAMED[rest]
    if words and all(word in MODULES for word in words):
        return attention, {"mode": "selective", "modules": tuple(dict.fromkeys(words))}
    raise ComparisonError(f"--settings {name!r}: unknown setting; {GRAMMAR}")


def _row(config: Config, attention: str, recompute: dict[str, Any]) -> Row:
    sections = config.to_dict()
    sections["recompute"], sections["model"]["attention"] = recompute, attention
    note = None
    if attention == "sdpa" and config.model.attention_dropout_p:
        sections["model"]["attention_dropout_p"] = 0.0
        note = f"without attention dropout ({config.model.attention_dropout_p} in the config): another training"
    own = Config.from_dict(sections)
    return Row(setting_label(attention, own.recompute), own, note)


def setting_label(attention: str, recompute: RecomputeConfig) -> str:
    """What a row is called: `none`, `core_attn dropout`, `fused all`, `full: sqrt`. unfused is not spelled out."""
    prefix = "" if attention == "unfused" else f"{attention} "
    for name, section in _NAMED.items():
        if _content(RecomputeConfig.model_validate(section)) == _content(recompute):
            return prefix + name
    return prefix + describe_recompute(recompute).removeprefix("selective: ").replace(", ", " ")


def _content(recompute: RecomputeConfig) -> dict[str, Any]:
    """What two equal settings share, in whichever order their modules were named."""
    return {**recompute.model_dump(), "modules": set(recompute.modules)}
