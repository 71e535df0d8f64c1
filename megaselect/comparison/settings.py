"""The rows of a config's comparison: names of settings become configs that differ in attention and recompute alone.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from megaselect.comparison.measurement import TrainJob
from megaselect.comparison.result import Setting
from megaselect.comparison.row import Rounds
from megaselect.config import Config, ModelConfig, RecomputeConfig
from megaselect.errors import ComparisonError
from megaselect.estimation.memory_check import missing_for_training
from megaselect.recomputation.presets import AUTO, PRESETS, setting_label
from megaselect.recompute_modules import MODULES

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
_NAMED = {**PRESETS, AUTO: RecomputeConfig(mode=AUTO)}
_WORDS = [name for name in _NAMED if not set(name.split()) <= set(MODULES)]
GRAMMAR = (
    f"a setting is {', '.join(_WORDS[:-1])} or {_WORDS[-1]}, or names of modules "
    f"({', '.join(MODULES)}), with {', '.join(ATTENTIONS[:-1])} or {ATTENTIONS[-1]} before it for another attention"
)


@dataclass(frozen=True)
class ConfigRow:
    """A setting to run. note: in what it differs from the config besides attention and recompute."""

    name: str
    config: Config
    note: str | None = None

    @property
    def about(self) -> Setting:
        """See Row."""
        model = self.config.model
        recompute = self.config.to_dict()["recompute"]
        return Setting(self.name, model.attention, model.attention_dropout_p, recompute, self.note)

    @property
    def is_reference(self) -> bool:
        """Whether nothing is computed again."""
        return self.config.recompute.mode == "none"

    def missing(self) -> str | None:
        """What a step lacks in memory, by prediction."""
        return missing_for_training(self.config)

    def job(self, plan: Rounds, number: int) -> TrainJob:
        """See Row. Memory is followed in the first round."""
        snapshot = None
        if plan.snapshot_dir is not None and number == 1:
            snapshot = str(plan.snapshot_dir / f"memory-{self.name.replace(' ', '-').replace(':', '')}.pickle")
        return TrainJob(
            config=self.config.to_dict(),
            round=number,
            steps=plan.steps,
            warmup_steps=plan.warmup_steps,
            with_timeline=number == 1,
            snapshot_path=snapshot,
        )


def make_rows(config: Config, names: Sequence[str]) -> list[ConfigRow]:
    """Rows in the order of `names`, each once; then the config's own setting, where it is none of them.

    A name without an attention means the config's. none of an attention stands before its other settings, whether
    it is named or not: they are compared with it. Raises ComparisonError for a name that means nothing.
    """
    wanted = [_parse(name, config) for name in names]
    if config.recompute.mode != "none":
        wanted.append((config.model.attention, config.recompute))
    rows: dict[str, ConfigRow] = {}
    for attention, recompute in wanted:
        for settings in (PRESETS["none"], recompute):
            row = _row(config, attention, settings)
            rows.setdefault(row.name, row)
    return list(rows.values())


def _parse(name: str, config: Config) -> tuple[str, RecomputeConfig]:
    """(attention, recompute settings) that a name means."""
    words = name.split()
    attention = words.pop(0) if words and words[0] in ATTENTIONS else config.model.attention
    rest = " ".join(words)
    if rest == config.recompute.mode == "auto":
        return attention, config.recompute  # with its budget
    if rest in _NAMED:
        return attention, _NAMED[rest]
    if words and all(word in MODULES for word in words):
        return attention, RecomputeConfig(mode="selective", modules=tuple(dict.fromkeys(words)))
    raise ComparisonError(f"--settings {name!r}: unknown setting; {GRAMMAR}")


def _row(config: Config, attention: str, recompute: RecomputeConfig) -> ConfigRow:
    sections = config.model_copy(update={"recompute": recompute}).to_dict()
    sections["model"]["attention"] = attention
    note = None
    if attention == "sdpa" and config.model.attention_dropout_p:
        sections["model"]["attention_dropout_p"] = 0.0
        note = f"without attention dropout ({config.model.attention_dropout_p} in the config): another training"
    own = Config.from_dict(sections)
    return ConfigRow(setting_label(attention, own.recompute), own, note)
