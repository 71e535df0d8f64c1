"""Recomputation in transformers' Trainer: a callback, and TrainingArguments as they are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from megaselect.batches import LossFunction
from megaselect.errors import RecomputeError
from megaselect.planning.any_model import recompute
from megaselect.recomputation.any_model import AnyModelPlan
from megaselect.trees import map_tensors

SAVED_BYTES = "megaselect/saved_bytes"  # in the Trainer's log


class RecomputeCallback(TrainerCallback):
    """`megaselect.recompute` for as long as a Trainer trains: the same losses and weights, bit for bit.

        Trainer(model, arguments, train_dataset=dataset, callbacks=[RecomputeCallback("selective")])

    plan: of the training that runs, or ran last; None before. It is put on the model when train() begins and undone
    when train() ends. Entries of the log that have a training loss get `megaselect/saved_bytes`: plan.bytes, of one
    micro-batch on this process. They are in `trainer.state.log_history`, in trainer_state.json and with the callbacks
    that come later in the Trainer's list. Reporters come before, until they are moved:
    `trainer.add_callback(trainer.pop_callback(WandbCallback))`.

    Warns where transformers checkpoints layers as well, and where no forward pass has followed the plan.
    """

    def __init__(
        self,
        setting: str | Mapping[str, str] | None = None,
        *,
        memory: str | int | None = None,
        saved: str | int | None = None,
        batch: Any = None,
        loss_fn: LossFunction | None = None,
    ) -> None:
        """As for `megaselect.recompute`. batch: the largest that the data collator makes, on any device.

        When train() begins, raises what `megaselect.recompute` raises, and RecomputeError where the Trainer would run
        copies of the model in threads, which is nn.DataParallel.
        """
        self.setting, self.memory, self.saved = setting, memory, saved
        self.batch, self.loss_fn = batch, loss_fn
        self.plan: AnyModelPlan | None = None
        self._is_on = self._has_looked = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._take_away()  # of a training that an exception has ended
        model: nn.Module = kwargs["model"]
        if args.n_gpu > 1:
            raise RecomputeError(
                f"RecomputeCallback: the Trainer runs a copy of the model in a thread for each of {args.n_gpu} GPUs, "
                "where no plan is followed: start a process for each, by torchrun or accelerate launch"
            )
        if _checkpoints_layers(model):
            warnings.warn(
                "RecomputeCallback: transformers checkpoints layers of the model as well, and these run again whole: "
                "the plan holds outside of them alone. Leave activation_checkpointing (gradient_checkpointing) out",
                stacklevel=2,
            )
        model.train()  # as each step will: a budget is planned for dropout that is on
        batch = map_tensors(lambda tensor: tensor.to(args.device), self.batch)
        self.plan = recompute(
            model, self.setting, memory=self.memory, saved=self.saved, batch=batch, loss_fn=self.loss_fn
        )
        self._is_on, self._has_looked = True, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.plan is None or self._has_looked or self.setting == "none":
            return
        if not self.plan.recorded:
            warnings.warn(
                "RecomputeCallback: no forward pass of the first step has gone through the plan, and everything is "
                "saved: the model is compiled as a whole (torch_compile=True), or the loss calls parts of it",
                stacklevel=2,
            )
        self._has_looked = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or self.plan is None or self.plan.bytes is None:
            return
        for entry in (logs, state.log_history[-1]):  # the Trainer has put a copy there already
            entry[SAVED_BYTES] = self.plan.bytes

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._take_away()

    def _take_away(self) -> None:
        if self.plan is not None and self._is_on:
            self.plan.undo()
        self._is_on = False


def _checkpoints_layers(model: nn.Module) -> bool:
    """Whether transformers' own checkpointing is on; False for a model of others."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):  # the second one until transformers 5
        found = getattr(model, name, None)
        if found is not None:
            return bool(found)
    return False
