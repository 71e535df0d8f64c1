"""What becomes of a run whose loss or gradients are not finite: it stops and says where, or leaves the step out.

A run that stops leaves what is needed to see it again:

    RUN/nonfinite/step-7/batch.safetensors   tokens, targets [b, s] and sample_index [b] of the micro-batch, int64
                        /report.json         step, loss, gradient norm, the tensor that was found, paths
    RUN/checkpoints/step-00000006            the state before the step

The micro-batch again, in Python; the dropout masks are those of the run, since they follow from the sample index:

    model = build_model(Config.from_yaml("RUN/config.yaml"))
    model.load_state_dict(load_file("RUN/checkpoints/step-00000006/model.safetensors"))
    batch = load_file("RUN/nonfinite/step-7/batch.safetensors", device=str(next(model.parameters()).device))
    loss = model(batch["tokens"], batch["targets"], batch["sample_index"])

with build_model and Config from megaselect, load_file from safetensors.torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from megaselect.config import TrainingConfig
from megaselect.devices import is_out_of_memory
from megaselect.errors import NonFiniteError
from megaselect.models.gpt.model import GPT
from megaselect.training.checkpoint_files import checkpoint_path, list_checkpoints, step_of
from megaselect.training.diagnosis import Finding, diagnose, nonfinite_weight
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState
from megaselect.training.step import StepOutcome, Stepper

MAX_IN_A_ROW = 20  # a bad stretch of the corpus is over by then: what goes on lies in the weights
STEPS_PER_NOTE = 10  # of those left out, while one comes within as many steps of the one before


@dataclass(frozen=True)
class _Case:
    """A step that was not finite. doubt: why no tensor was found, or whatever else is to be said of the finding."""

    outcome: StepOutcome
    before: RunState
    finding: Finding | None
    doubt: str = ""

    def __str__(self) -> str:
        loss, norm = self.outcome.loss, self.outcome.grad_norm
        problem = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        place = f"; first not finite: {self.finding}" if self.finding else ""
        return f"step {self.before.step + 1}: {problem}{place}{self.doubt}"


class NonFiniteSteps:
    """Hears how each step of a run ended. note: hears of steps that are left out."""

    def __init__(
        self,
        training: TrainingConfig,
        model: GPT,
        optimizer: MixedPrecisionAdamW,
        run_dir: Path,
        note: Callable[[str], None],
    ) -> None:
        self._training, self._model, self._optimizer = training, model, optimizer
        self._run_dir, self._note = run_dir, note
        self._in_a_row = self._left_out = 0
        self._last_left_out = self._good_step = -1

    @property
    def in_streak(self) -> bool:
        """Whether the last step was not finite: the weights are those of a step before, and may be useless."""
        return self._in_a_row > 0

    def after_step(
        self, outcome: StepOutcome, before: RunState, stepper: Stepper, save: Callable[[RunState], None]
    ) -> None:
        """Nothing where the step was finite; else a note or NonFiniteError, as training.on_nonfinite says.

        Weights that are not finite and many such steps in a row end the run in any case. before: the state before the
        step, which has left the weights as they were; save: brings it into a checkpoint.
        """
        self._in_a_row = self._in_a_row + 1 if outcome.nonfinite else 0
        if not outcome.nonfinite:
            return
        if self._in_a_row == 1:
            self._good_step = before.step
        weight = nonfinite_weight(self._optimizer, stepper.ranks)
        stops = self._training.on_nonfinite == "stop" or weight is not None or self._in_a_row == MAX_IN_A_ROW
        if weight:
            case = _Case(outcome, before, weight)
        elif stops or not self._left_out:  # a diagnosis costs as much as a step
            case = self._diagnose(outcome, before, stepper)
        else:
            case = _Case(outcome, before, None)
        if not stops:
            self._leave_out(case)
            return
        ranks = stepper.ranks
        remedy = ranks.from_first(self._remedy(case))  # the others may look into the directory a moment later
        if not self._weights_are_useless(case):  # else nobody should continue from them
            save(before)
        written = ranks.from_first(self._write_files(case, stepper) if ranks.is_first else "")
        raise NonFiniteError(f"{case}. {written}; {remedy}")

    def _leave_out(self, case: _Case) -> None:
        """Tell of it, unless it only repeats what was told."""
        self._left_out += 1
        is_news = self._left_out == 1 or case.before.step - self._last_left_out > STEPS_PER_NOTE
        self._last_left_out = case.before.step
        if is_news or self._left_out % STEPS_PER_NOTE == 0:
            so_far = f" ({self._left_out} such steps so far)" if self._left_out > 1 else ""
            self._note(f"{case}; the step is left out, the weights stay as they were{so_far}")

    def _weights_are_useless(self, case: _Case) -> bool:
        return _is_weight(case) or self._in_a_row == MAX_IN_A_ROW

    def _diagnose(self, outcome: StepOutcome, before: RunState, stepper: Stepper) -> _Case:
        try:
            finding = diagnose(self._model, self._optimizer, stepper, before)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _Case(outcome, before, None, "; memory is too short to watch the step and find the tensor")
        if finding is None:
            doubt = "; run again, all of the step was finite: suspect the hardware, or operations whose bits vary"
            return _Case(outcome, before, None, doubt)
        return _Case(outcome, before, finding)

    def _remedy(self, case: _Case) -> str:
        """What to do, before anything is saved: that may remove an older checkpoint."""
        in_vain = f"{MAX_IN_A_ROW} such steps in a row: " if self._in_a_row == MAX_IN_A_ROW else ""
        slower = f"a lower --training.lr{' or --dtype bf16' if self._optimizer.scalars() else ''}"
        # Those since the last good step have its weights, with which every step fails.
        older = [path for path in list_checkpoints(self._run_dir) if (step_of(path) or 0) < self._good_step]
        if older and (self._weights_are_useless(case) or self._training.keep_checkpoints > 1):
            back = f"go back with --resume {older[-1]} and a lower --training.lr"
        else:
            back = f"begin again in another --run-dir with {slower}"
        if self._weights_are_useless(case):
            return f"{in_vain}{back}"
        return f"repeat the command with --on-nonfinite skip to go on without such steps, or {back}"

    def _write_files(self, case: _Case, stepper: Stepper) -> str:
        """Write batch and report; what was written where, or why not."""
        home = self._run_dir / "nonfinite" / f"step-{case.before.step + 1}"
        batch = _batch(case, stepper)
        try:
            home.mkdir(parents=True, exist_ok=True)
            save_file(batch, home / "batch.safetensors")
            report = self._report(case, batch["sample_index"].tolist())
            (home / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        except (OSError, SafetensorError) as error:
            return f"Batch and report could not be saved in {home}: {' '.join(str(error).split())}"
        saved = f", the state before the step is in {report['checkpoint']}" if report["checkpoint"] else ""
        return f"Batch and report are in {home}{saved}"

    def _report(self, case: _Case, samples: list[int]) -> dict[str, Any]:
        saved = None if self._weights_are_useless(case) else checkpoint_path(self._run_dir, case.before.step)
        return {
            "step": case.before.step + 1,
            "loss": _as_json(case.outcome.loss),
            "grad_norm": _as_json(case.outcome.grad_norm),
            "learning_rate": case.outcome.learning_rate,
            "loss_scale": self._optimizer.scalars().get("scale"),
            "message": str(case),
            "found": asdict(case.finding) if case.finding else None,
            "samples": samples,
            "config": str(self._run_dir / "config.yaml"),
            "checkpoint": str(saved) if saved else None,
        }


def _is_weight(case: _Case) -> bool:
    return case.finding is not None and case.finding.kind == "weight"


def _batch(case: _Case, stepper: Stepper) -> dict[str, torch.Tensor]:
    """The micro-batch of the finding; where it is of none, all of the step."""
    number = case.finding.micro_batch if case.finding else None
    numbers = range(stepper.micro_batches) if number is None else [number]
    batches = [stepper.batch(case.before, each) for each in numbers]
    names = ("tokens", "targets", "sample_index")
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}


def _as_json(value: float) -> float | str:
    """JSON has no words for NaN and infinities."""
    return value if math.isfinite(value) else str(value)
