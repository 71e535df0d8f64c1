"""The training loop: micro-batches to optimizer steps, with evaluation, checkpoints and metrics at their intervals."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megaselect.config import Config
from megaselect.devices import peak_flops
from megaselect.model.gpt import GPT
from megaselect.recompute import ledger
from megaselect.recompute.apply import plan_of
from megaselect.training.accounting import describe_recompute, step_flops, stored_report
from megaselect.training.checkpoint import RunState, save_checkpoint
from megaselect.training.datasets import Datasets
from megaselect.training.evaluate import evaluate, sample_text
from megaselect.training.events import Metrics, RunSummary, Sink
from megaselect.training.metrics import MetricsFile, peak_bytes, reset_peak_bytes
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.signals import StopRequest
from megaselect.training.step import StepOutcome, Stepper


@dataclass
class _Progress:
    """What the summary needs of this process's steps."""

    step_seconds: list[float] = field(default_factory=list)
    last: Metrics = field(default_factory=dict)
    valid_losses: list[float] = field(default_factory=list)
    stored_bytes: int | None = None


class Trainer:
    """Runs one training run from `state` to max_steps. The model, optimizer and data are ready; the sink listens."""

    def __init__(
        self,
        config: Config,
        model: GPT,
        optimizer: MixedPrecisionAdamW,
        datasets: Datasets,
        state: RunState,
        run_dir: Path,
        sink: Sink,
    ) -> None:
        self.config, self.model, self.optimizer, self.datasets = config, model, optimizer, datasets
        self.state, self.run_dir, self.sink = state, run_dir, sink
        weight = next(model.parameters())
        self.device, self.element_bytes = weight.device, weight.element_size()
        self.plan = plan_of(model)
        self.flops = step_flops(config, self.element_bytes, self.plan)
        self.peak_flops = peak_flops(self.device, weight.dtype)
        self._progress = _Progress()
        self._stepper = Stepper(config, model, optimizer, datasets.train)

    def run(self) -> RunSummary:
        """Train; the last evaluation, checkpoint and sample come also after Ctrl-C, at the end of the step it met."""
        training, started = self.config.training, time.perf_counter()
        saved_step, evaluated_step = self.state.step, -1
        with MetricsFile(self.run_dir / "metrics.jsonl", self.state.step) as metrics_file, StopRequest() as stop:
            while self.state.step < training.max_steps and not stop.requested:
                metrics = self._step()
                metrics_file.write(metrics)
                self.sink.step(metrics)
                if _due(self.state.step, training.eval_interval):
                    self._evaluate()
                    evaluated_step = self.state.step
                if _due(self.state.step, training.save_interval):
                    self._save()
                    saved_step = self.state.step
        if training.eval_interval and evaluated_step != self.state.step and not stop.requested:
            self._evaluate()
        if training.save_interval and saved_step != self.state.step:
            self._save()
        return self._summary(time.perf_counter() - started, stop.requested)

    def _step(self) -> Metrics:
        """One optimizer step over the global batch."""
        reset_peak_bytes(self.device)
        started = time.perf_counter()
        outcome, self.state = self._stepper.step(self.state, self._forward)
        seconds = time.perf_counter() - started
        self._progress.step_seconds.append(seconds)
        self._progress.last = self._metrics(outcome, seconds)
        if outcome.skipped:
            self.sink.note(f"step {self.state.step}: fp16 gradients overflowed; step skipped, loss scale halved")
        return self._progress.last

    def _forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return self._measured_forward(inputs) if self._progress.stored_bytes is None else self.model(*inputs)

    def _measured_forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The run's first forward pass, with the ledger watching."""
        with ledger.record(self.model) as record:
            loss = self.model(*inputs)
        report = stored_report(self.config, self.element_bytes, self.plan, record)
        self._progress.stored_bytes = report.measured_total
        self.sink.stored(report)
        return loss

    def _metrics(self, outcome: StepOutcome, seconds: float) -> Metrics:
        training, samples = self.config.training, self.state.next_sample
        return {
            "step": self.state.step,
            "samples": samples,
            "tokens": samples * self.config.model.seq_length,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "lr": outcome.learning_rate,
            "step_ms": 1e3 * seconds,
            "tokens_per_s": training.global_batch_size * self.config.model.seq_length / seconds,
            "mfu": self._utilisation(self.flops.model, seconds),
            "hfu": self._utilisation(self.flops.hardware, seconds),
            "stored_bytes": self._progress.stored_bytes,
            "peak_bytes": peak_bytes(self.device),
        }

    def _utilisation(self, flops: int, seconds: float) -> float | None:
        return flops / seconds / self.peak_flops if self.peak_flops else None

    def _evaluate(self) -> None:
        training = self.config.training
        loss = evaluate(self.model, self.datasets.valid, training.eval_batches, training.micro_batch_size)
        self._progress.valid_losses.append(loss)
        self.sink.evaluation(self.state.step, loss)

    def _save(self) -> None:
        save_checkpoint(self.run_dir, self.model, self.optimizer, self.state, self.config)

    def _summary(self, seconds: float, interrupted: bool) -> RunSummary:
        training, progress = self.config.training, self._progress
        sample = None
        if training.sample_tokens and self.datasets.tokenizer and not interrupted:
            sample = sample_text(self.model, self.datasets.tokenizer, training.sample_tokens, training.seed)
        step_seconds = statistics.median(progress.step_seconds) if progress.step_seconds else None
        tokens = training.global_batch_size * self.config.model.seq_length
        return RunSummary(
            steps=self.state.step,
            tokens=self.state.next_sample * self.config.model.seq_length,
            seconds=seconds,
            final_loss=progress.last.get("loss"),
            valid_loss=progress.valid_losses[-1] if progress.valid_losses else None,
            best_valid_loss=min(progress.valid_losses, default=None),
            tokens_per_s=tokens / step_seconds if step_seconds else None,
            step_ms=1e3 * step_seconds if step_seconds else None,
            stored_bytes=progress.stored_bytes,
            peak_bytes=progress.last.get("peak_bytes"),
            peak_kind="of tensors" if self.device.type == "cuda" else "of the process, libraries included",
            mfu=self._utilisation(self.flops.model, step_seconds) if step_seconds else None,
            hfu=self._utilisation(self.flops.hardware, step_seconds) if step_seconds else None,
            recompute=describe_recompute(self.config.recompute, self.plan),
            sample=sample,
            run_dir=str(self.run_dir),
            interrupted=interrupted,
        )


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
