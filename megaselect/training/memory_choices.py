"""What a step that ran out of memory could do instead: what each setting keeps, and which would fit. No torch.

Peaks are those of megaselect/prediction/peak.py: they count tensors, not what an allocator cannot use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from megaselect.config import Config, RecomputeConfig
from megaselect.distributed.layout import Layout
from megaselect.planning.auto import Problem, problem_of
from megaselect.prediction.peak import step_peak
from megaselect.prediction.saved_bytes import saved_bytes
from megaselect.recomputation.plan import RecomputePlan, make_plan
from megaselect.recomputation.presets import PRESETS, setting_flags


class PresetCost(NamedTuple):
    """A named setting. saved: bytes that a micro-batch saves for backward in all. peak: the most in a step."""

    name: str
    settings: RecomputeConfig
    plan: RecomputePlan
    saved: int
    peak: int

    @property
    def flags(self) -> str:
        """What asks for it on the command line."""
        return setting_flags(self.settings)


@dataclass(frozen=True)
class Failed:
    """The config and plan of a step that ran out of memory, in activations of `element_bytes`, on ranks of `layout`."""

    config: Config
    plan: RecomputePlan
    element_bytes: int
    on_gpu: bool
    layout: Layout = field(default_factory=Layout)

    @property
    def saved(self) -> int:
        """Bytes that a micro-batch saves for backward."""
        return saved_bytes(self._problem().shape, self.plan)

    @property
    def peak(self) -> int:
        """The most bytes of the step, by prediction."""
        return _peak(self._problem(), self.plan)

    @property
    def held(self) -> int:
        """Bytes of weights, gradients and optimizer state, whatever the setting."""
        return self._problem().static.total

    def presets(self) -> list[PresetCost]:
        """The named settings, from what keeps the most to what keeps the least."""
        problem, found = self._problem(), []
        for name, settings in PRESETS.items():
            plan = make_plan(settings, problem.layers)
            found.append(PresetCost(name, settings, plan, saved_bytes(problem.shape, plan), _peak(problem, plan)))
        return found

    def stronger(self) -> PresetCost | None:
        """The first named setting that keeps fewer bytes than this step did and has no higher peak."""
        saved, peak = self.saved, self.peak
        return next((preset for preset in self.presets() if preset.saved < saved and preset.peak <= peak), None)

    def fitting(self, budget_bytes: int) -> list[PresetCost]:
        """Those whose peak is within the budget, and lower than that of what ran out."""
        limit = min(budget_bytes, self.peak - 1)
        return [preset for preset in self.presets() if preset.peak <= limit]

    def smaller_micro_batch(self, plan: RecomputePlan, budget_bytes: int) -> tuple[int, int] | None:
        """The largest smaller micro-batch, at the same global batch, with which `plan` fits, and its peak."""
        training, limit = self.config.training, min(budget_bytes, self.peak - 1)
        for batch in range(training.micro_batch_size - 1, 0, -1):
            if training.global_batch_size % (batch * self.layout.ranks):
                continue
            peak = _peak(self._problem(batch), plan)
            if peak <= limit:
                return batch, peak
        return None

    def _problem(self, micro_batch: int | None = None) -> Problem:
        config = self.config
        if micro_batch is not None:
            training = config.training.model_copy(update={"micro_batch_size": micro_batch})
            config = config.model_copy(update={"training": training})
        return problem_of(config, self.element_bytes, self.on_gpu, self.layout)


def _peak(problem: Problem, plan: RecomputePlan) -> int:
    return step_peak(problem.shape, plan, problem.static, problem.situation).bytes
