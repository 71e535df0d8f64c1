"""The training loop: micro-batches to optimizer steps, with evaluation, checkpoints and metrics at their intervals."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from megaselect import ledger
from megaselect.config import Config
from megaselect.data.blend import DataSource
from megaselect.data.prefetch import Prefetcher
from megaselect.devices import is_out_of_memory, peak_flops
from megaselect.distributed.ranks import Ranks
from megaselect.errors import OutOfMemoryError, UnsupportedTorchError
from megaselect.ledger.self_check import check_observation
from megaselect.models.gpt.apply_plan import applied_plan
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.presets import describe_recompute
from megaselect.training.accounting import saved_report, step_flops
from megaselect.training.checkpoint_files import checkpoint_path
from megaselect.training.checkpoint_writer import CheckpointSaver
from megaselect.training.datasets import Datasets
from megaselect.training.evaluate import evaluate
from megaselect.training.events import Metrics, RunSummary, Sink, finite
from megaselect.training.memory import memory_metrics, reset_peak_bytes
from megaselect.training.metrics_file import METRICS_NAME, MetricsFile, NoMetrics
from megaselect.training.nonfinite import NonFiniteSteps
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.out_of_memory import memory_errors_explained, step_up
from megaselect.training.phases import PHASES, PhaseTimes
from megaselect.training.profilers import Profilers
from megaselect.training.sampling import sample_text
from megaselect.training.signals import StopRequest
from megaselect.training.spikes import SpikeDetector, recent_losses
from megaselect.training.state import RunState
from megaselect.training.step import StepOutcome, Stepper


@dataclass
class _Progress:
    """What the summary needs of this process's steps."""

    step_seconds: list[float] = field(default_factory=list)
    data_shares: list[float] = field(default_factory=list)
    phase_ms: dict[str, array[float]] = field(default_factory=lambda: {phase: array("d") for phase in PHASES})
    last: Metrics = field(default_factory=dict)
    valid_losses: list[float] = field(default_factory=list)
    test_loss: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None  # of the last step
    measures: bool = True  # the next forward pass
    loss_spikes: int = 0
    saved_step: int = -1


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
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.model, self.optimizer, self.datasets = model, optimizer, datasets
        self.state, self.run_dir, self.sink = state, run_dir, sink
        weight = next(model.parameters())
        self.device, self.element_bytes = weight.device, optimizer.dtype.itemsize
        self.peak_flops = peak_flops(self.device, optimizer.dtype)
        self._progress = _Progress(saved_step=state.step)
        self._phases = PhaseTimes(self.device)
        self._batches = Prefetcher(
            datasets.train, config.data.prefetch, pin_memory=self.device.type == "cuda", ranks=ranks.size
        )
        self._metrics_file = (
            MetricsFile(run_dir / METRICS_NAME, state.step, sink.note) if ranks.is_first else NoMetrics()
        )
        self._saver = CheckpointSaver(
            run_dir, config.training, datasets.fingerprint, self._metrics_file.sync, sink.note, ranks
        )
        self._nonfinite = NonFiniteSteps(config.training, model, optimizer, run_dir, sink.note)
        self._spikes = SpikeDetector(recent_losses(run_dir) if ranks.is_first else [])
        self._use(config)

    def _use(self, config: Config) -> None:
        """Go on with this config; the model runs its recompute settings already."""
        self.config, self.plan = config, applied_plan(self.model)
        self.flops = step_flops(config, self.element_bytes, self.plan)
        self._stepper = Stepper(
            config.training, self.model, self.optimizer, self._batches, self._phases.done, self.ranks
        )
        self._progress.measures = True

    def run(self, stop: StopRequest) -> RunSummary:
        """Train; the last checkpoint comes also where `stop` ended the run.

        It does so at the end of the step that it met, or within an evaluation, which is then not recorded.
        """
        training, started = self.config.training, time.perf_counter()
        profilers = Profilers(self.config, self._phases, self.run_dir, self.device, self.sink.note)
        with self._metrics_file, self._saver, self._batches, profilers:
            while self.state.step < training.max_steps and not stop.reason:
                with profilers.step(self.state.step + 1):
                    metrics = self._step()
                self.sink.step(metrics)
                self._saver.report()
                if _due(self.state.step, training.eval_interval, training.max_steps):
                    metrics = {**metrics, **self._evaluate(stop)}
                # Before a checkpoint of the step: a resumed run does not take the step again.
                self._metrics_file.write(metrics)
                stop.agree()
                asked = stop.take_save()
                if self._save_is_due(asked):
                    self._save()
                if asked:
                    self.sink.note(f"saving {checkpoint_path(self.run_dir, self.state.step).name}, as SIGUSR1 asked")
            if training.eval_interval and not self._progress.step_seconds:
                self._evaluate(stop)  # a run that was complete already says again how good it is
            if training.save_interval or stop.reason:
                self._save()
            seconds = time.perf_counter() - started
            if self.datasets.test and not stop.reason:
                self._test(self.datasets.test, stop)
        return self._summary(seconds, stop.reason)

    def _step(self) -> Metrics:
        """One optimizer step over the global batch."""
        reset_peak_bytes(self.device)
        before, started = self.state, time.perf_counter()
        outcome = self._take_step()
        seconds = time.perf_counter() - started
        self._progress.step_seconds.append(seconds)
        self._progress.last = self._metrics(outcome, seconds) | self._spike(outcome.loss)
        self._nonfinite.after_step(outcome, before, self._stepper, self._go_back)
        if outcome.skipped and not outcome.nonfinite:
            self.sink.note(f"step {self.state.step}: fp16 gradients overflowed; step skipped, loss scale halved")
        return self._progress.last

    def _take_step(self) -> StepOutcome:
        """The step, taken again with the next stronger recompute mode for as long as memory is short."""
        while True:
            self._phases.start()
            try:
                outcome, self.state = self._stepper.step(self.state, self._forward)
                return outcome
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error)  # alone: the error's traceback holds the tensors of the step
            self._use(self._with_less_memory(problem))

    def _with_less_memory(self, problem: str) -> Config:
        """A config whose steps keep less, which the model runs already. Where there is none, what was done is saved."""
        try:
            return step_up(self.config, self.model, self.optimizer, self.state.step, problem, self.sink.note)
        except OutOfMemoryError:
            self._save_what_was_done()
            raise

    def _save_what_was_done(self) -> None:
        """If that is the state after a whole step, and memory is not too short for a copy of it.

        Of several ranks one alone has run out: the others are in the step, and have no part in a save.
        """
        if self.config.training.save_interval and self.optimizer.is_whole and self.ranks.size == 1:
            try:
                self._save()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise

    def _spike(self, loss: float) -> Metrics:
        """What the metrics of the step say of a loss spike: nothing where it is none."""
        spike = self._spikes.update(loss) if math.isfinite(loss) else None
        if spike is None:
            return {}
        self._progress.loss_spikes += 1
        self.sink.note(f"step {self.state.step}: {spike}")
        return {"loss_spike": True}

    def _go_back(self, state: RunState) -> None:
        """Be where the last step began, which changed nothing, in a checkpoint too."""
        self.state = state
        if not self.ranks.from_first(checkpoint_path(self.run_dir, state.step).exists()):  # a run that has just begun
            self._progress.saved_step = -1
        self._save()

    def _forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        if not self._progress.measures:
            return self.model(*inputs)
        self._progress.measures = False
        try:
            check_observation()
        except UnsupportedTorchError as error:
            self.sink.note(f"saved bytes are not measured: {error}")
            return self.model(*inputs)
        return self._measured_forward(inputs)

    def _measured_forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The first forward pass of a plan, with the ledger watching."""
        with ledger.record(self.model) as record:
            loss = self.model(*inputs)
        report = saved_report(self.config, self.element_bytes, self.plan, record)
        self._progress.saved_bytes = report.measured_total
        self.sink.saved(report)
        return loss

    def _metrics(self, outcome: StepOutcome, seconds: float) -> Metrics:
        training, samples = self.config.training, self.state.next_sample
        phases, scale = self._phases.milliseconds(), self.optimizer.scalars().get("scale")
        memory = self._memory()
        self._progress.data_shares.append(phases["data"] / (1e3 * seconds))
        for phase, span in phases.items():
            self._progress.phase_ms[phase].append(span)
        return {
            "step": self.state.step,
            "samples": samples,
            "tokens": samples * self.config.model.seq_length,
            "loss": finite(outcome.loss),
            "grad_norm": finite(outcome.grad_norm),
            "lr": outcome.learning_rate,
            "step_ms": 1e3 * seconds,
            "tokens_per_s": training.global_batch_size * self.config.model.seq_length / seconds,
            "mfu": self._utilisation(self.flops.model, seconds),
            "hfu": self._utilisation(self.flops.hardware, seconds),
            "saved_bytes": self._progress.saved_bytes,
            **memory,
            "skipped_steps": self.state.skipped_steps,
            **({} if scale is None else {"loss_scale": scale}),
            **{f"samples/{name}": count for name, count in self.datasets.train.counts(samples).items()},
            **{f"{phase}_ms": span for phase, span in phases.items()},
        }

    def _memory(self) -> Metrics:
        """What is held and was at most; of several ranks also how many, the highest peak and the mean."""
        memory, layout = memory_metrics(self.device), self.optimizer.layout
        peaks = self.ranks.gather_values(memory["peak_bytes"] or 0)
        self._progress.peak_bytes = max(peaks)
        if self.ranks.size == 1:
            return {**memory}
        return {
            **memory,
            "peak_bytes": max(peaks),
            "peak_bytes_mean": sum(peaks) // len(peaks),
            "ranks": layout.ranks,
            "replicas": layout.replicas,
            "shards": layout.shards,
        }

    def _utilisation(self, flops: int, seconds: float) -> float | None:
        """Of all ranks' devices together."""
        return flops / seconds / (self.peak_flops * self.ranks.size) if self.peak_flops else None

    def _evaluate(self, stop: StopRequest) -> Metrics:
        """What the metrics of the step say of the validation loss; the state remembers the best."""
        loss = self._loss_on("valid", self.datasets.valid, self.config.training.eval_samples, stop)
        if loss is None:
            return {}
        self._progress.valid_losses.append(loss)
        self.sink.evaluation(self.state.step, loss)
        best = self.state.best_valid_loss
        if math.isfinite(loss) and (best is None or loss < best):
            self.state = replace(self.state, best_valid_loss=loss, best_step=self.state.step)
        return {"valid_loss": finite(loss)}

    def _test(self, test: DataSource, stop: StopRequest) -> None:
        """Loss on the whole of the test split: looked at once, when the run is done."""
        self._progress.test_loss = self._loss_on("test", test, test.num_windows, stop)
        if stop.take_save() or stop.reason:
            self._save()

    def _loss_on(self, split: str, source: DataSource, samples: int, stop: StopRequest) -> float | None:
        """None where the run is to stop, before the evaluation or within a micro-batch of it."""
        samples = min(samples, source.num_windows)

        def goes_on(done: int) -> bool:
            stop.agree()
            if not stop.reason:
                self.sink.evaluating(split, done, samples)
            return not stop.reason

        remedy = "it saves nothing for backward; lower --training.micro-batch-size, or set --training.loss-chunk-tokens"
        with memory_errors_explained("evaluating", remedy):
            loss = evaluate(self.model, source, samples, self.config.training.micro_batch_size, goes_on, self.ranks)
        if loss is None:
            self.sink.note(f"step {self.state.step}: the evaluation on the {split} split was stopped and not recorded")
        return loss

    def _save_is_due(self, asked: bool) -> bool:
        """By the interval, for the best validation loss so far, or because it was asked for.

        Not by the interval while steps are left out as not finite: checkpoints of weights that may be useless would
        take the place of good ones.
        """
        training, state = self.config.training, self.state
        by_interval = _due(state.step, training.save_interval, training.max_steps) and not self._nonfinite.in_streak
        best = training.keep_best and training.save_interval > 0 and state.best_step == state.step
        return asked or best or by_interval

    def _save(self) -> None:
        """Hand the state to the saver, once a step."""
        if self._progress.saved_step != self.state.step:
            self._saver.save(self.optimizer, self.state, self.config)
            self._progress.saved_step = self.state.step

    def _summary(self, seconds: float, stopped_by: str | None) -> RunSummary:
        training, progress = self.config.training, self._progress
        sample = None
        if training.sample_tokens and self.datasets.tokenizer and not stopped_by:
            sample = sample_text(self.model, self.datasets.tokenizer, training.sample_tokens, training.seed)
        step_seconds = statistics.median(progress.step_seconds) if progress.step_seconds else None
        tokens = training.global_batch_size * self.config.model.seq_length
        return RunSummary(
            steps=self.state.step,
            tokens=self.state.next_sample * self.config.model.seq_length,
            seconds=seconds,
            final_loss=progress.last.get("loss"),
            valid_loss=progress.valid_losses[-1] if progress.valid_losses else None,
            best_valid_loss=self.state.best_valid_loss,
            tokens_per_s=tokens / step_seconds if step_seconds else None,
            step_ms=1e3 * step_seconds if step_seconds else None,
            saved_bytes=progress.saved_bytes,
            peak_bytes=progress.peak_bytes,
            peak_kind="of tensors" if self.device.type == "cuda" else "of the process, libraries included",
            mfu=self._utilisation(self.flops.model, step_seconds) if step_seconds else None,
            hfu=self._utilisation(self.flops.hardware, step_seconds) if step_seconds else None,
            recompute=describe_recompute(self.config.recompute, self.plan),
            sample=sample,
            run_dir=str(self.run_dir),
            stopped_by=stopped_by,
            test_loss=progress.test_loss,
            skipped_steps=self.state.skipped_steps,
            loss_spikes=progress.loss_spikes,
            data_share=statistics.median(progress.data_shares) if progress.data_shares else None,
            phase_ms={phase: statistics.median(spans) for phase, spans in progress.phase_ms.items() if spans},
        )


def _due(step: int, interval: int, last_step: int) -> bool:
    """Every `interval` steps and at the run's last one; never where the interval is 0."""
    return interval > 0 and (step % interval == 0 or step == last_step)
