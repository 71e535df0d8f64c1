"""The rows of any model's comparison: settings of megaselect.recompute, and peers beside them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megaselect.comparison.measurement import ModelChoices, ModelJob
from megaselect.comparison.result import Setting
from megaselect.comparison.row import Rounds
from megaselect.errors import ComparisonError

NONE = "none"
MODEL_SETTINGS = (NONE, "selective", "attention", "full")
HUGGING_FACE, SAC, TORCH_REMAT = "HF checkpointing", "torch SAC", "torch_remat"
# Peer -> what of it is compared.
PEERS = {
    HUGGING_FACE: "gradient_checkpointing_enable, without reentrance",
    SAC: "create_selective_checkpoint_contexts around each layer, saving matrix products and attention",
    TORCH_REMAT: "checkpoint around each layer, with a hook that puts the random state back",
}
PEERS_NOTE = "Peers keep a random state for each layer, where no ledger sees it; those of our settings are counted."
LEAST_WARMUP_STEPS = 2  # the ledger watches the first; a plan records the second, and the others follow it


@dataclass(frozen=True)
class ModelRow:
    """A model with a setting of megaselect.recompute, or with a peer."""

    choices: ModelChoices
    name: str

    @property
    def about(self) -> Setting:
        """See Row."""
        return Setting(self.name, None, None, {"mode": self.name}, PEERS.get(self.name), self.name in PEERS)

    @property
    def is_reference(self) -> bool:
        """Whether it is the untouched model."""
        return self.name == NONE

    def missing(self) -> str | None:
        """What a step holds is not predicted."""
        return None

    def job(self, plan: Rounds, number: int) -> ModelJob:
        """See Row."""
        return ModelJob(self.choices, self.name, number, plan.steps, plan.warmup_steps)


def make_model_rows(choices: ModelChoices, names: Sequence[str]) -> list[ModelRow]:
    """none, with which all are compared, then settings in the order of `names`, each once, then every peer.

    Raises ComparisonError for a name that is no setting.
    """
    for name in names:
        if name not in MODEL_SETTINGS:
            known = f"{', '.join(MODEL_SETTINGS[:-1])} or {MODEL_SETTINGS[-1]}"
            raise ComparisonError(f"--settings {name!r}: unknown setting; with --model a setting is {known}")
    return [ModelRow(choices, name) for name in dict.fromkeys([NONE, *names, *PEERS])]
