"""A training run in Weights & Biases: the events of a run become history, summary and configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaselect.config import RecomputeConfig
from megaselect.recomputation.presets import setting_label
from megaselect.report.wandb_connection import WandbConnection
from megaselect.report.wandb_environment import Mode, job_type_for, name_for, run_id_for, tags_for
from megaselect.report.wandb_names import SUMMARY_NAMES, columns, device_type, run_id
from megaselect.training.events import Metrics, RunHeader, RunSummary, SavedReport
from megaselect.training.metrics_file import METRICS_NAME

if TYPE_CHECKING:
    from wandb import Run

INTERRUPTED_EXIT_CODE = 130  # as a shell reports Ctrl-C
FAILED_EXIT_CODE = 1


class WandbSink:
    """Records a run in run_dir/wandb and, online, on the server. Where that fails, training goes on without it.

    mode, note, and what is raised: see WandbConnection.
    """

    def __init__(
        self, mode: Mode, project: str, group: str | None, run_dir: str | Path, note: Callable[[str], None]
    ) -> None:
        self._project = project
        self._group = group
        self._run_dir = Path(run_dir)
        self._run: Run | None = None
        self._tokens: int | None = None
        self._connection = WandbConnection(mode, note, without="training goes on without it")

    def start(self, header: RunHeader) -> None:
        """Open the run; a resumed one goes on under the id that its checkpoint holds.

        Steps that were done after that checkpoint are recorded a second time, with the same losses to the bit. Nothing
        is taken back or left out, since a run may also be resumed with settings of its own.
        """
        self._tokens = None if header.first_step else 0
        self._run = self._open(header)
        run = self._run
        if run is not None:
            with self._connection.guarded():
                self._connection.announce(lambda: run.url, self._run_dir)
                if self._connection.mode == "online" and header.first_step:
                    self._log_lost_steps(run.summary.get("step") or 0, header.first_step)

    def identity(self) -> Mapping[str, str]:
        """The run's id, under which it goes on after a resumption. Offline, each part is a folder that ends in it."""
        return {} if self._run is None else {"wandb_id": self._run.id}

    def saved(self, report: SavedReport) -> None:
        """Put the predicted and the measured bytes into the run's summary."""
        self._summarise(
            {
                "mem/predicted_bytes": report.predicted_total,
                "mem/measured_bytes": report.measured_total,
                "mem/prediction_exact": report.matches,
            }
        )

    def step(self, metrics: Metrics) -> None:
        """Log what is known of one step."""
        tokens = metrics["tokens"]
        self._tokens = None if tokens is None else int(tokens)
        self._log(columns(metrics))

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """Progress is for the console."""

    def evaluation(self, step: int, loss: float) -> None:
        """Log the validation loss at the tokens seen so far."""
        tokens = {} if self._tokens is None else {"tokens": self._tokens}
        self._log({"step": step, "eval/loss": loss, **tokens})

    def note(self, text: str) -> None:
        """Notes are for the console."""

    def finish(self, summary: RunSummary) -> None:
        """Write the summary, and wait a bounded time for what is still to be uploaded."""
        values = {name: getattr(summary, field) for field, name in SUMMARY_NAMES.items()}
        phases = {f"perf/median_{phase}_ms": span for phase, span in summary.phase_ms.items()}
        self._summarise({name: value for name, value in (values | phases).items() if value is not None})
        self._end(INTERRUPTED_EXIT_CODE if summary.interrupted else 0)

    def fail(self, reason: str) -> None:
        """End the run as a failed one, whose summary says why."""
        self._summarise({"failure": reason})
        self._end(FAILED_EXIT_CODE)

    def _end(self, exit_code: int) -> None:
        if self._run is not None and self._connection.records:
            self._connection.finish(self._run, exit_code)
        self._run = None

    def _log_lost_steps(self, server_step: int, last_step: int) -> None:
        """The steps up to the checkpoint that a killed process had not yet sent; metrics.jsonl holds them all."""
        for metrics in _metrics_between(self._run_dir / METRICS_NAME, server_step, last_step):
            valid_loss = metrics.pop("valid_loss", None)
            self.step(metrics)
            if valid_loss is not None:
                self.evaluation(metrics["step"], valid_loss)

    def _log(self, values: dict[str, Any]) -> None:
        if self._run is not None and self._connection.records:
            with self._connection.guarded():
                self._run.log(values)

    def _summarise(self, values: dict[str, Any]) -> None:
        if self._run is not None and self._connection.records:
            with self._connection.guarded():
                self._run.summary.update(values)

    def _open(self, header: RunHeader) -> Run | None:
        attention, config_name = header.config["model"]["attention"], Path(header.config_name).stem
        recompute = header.config["recompute"]
        label = setting_label(attention, RecomputeConfig.model_validate(recompute))
        former = header.identity.get("wandb_id") if self._is_continued(header) else None
        series = former or run_id_for(run_id(label))
        facts = {"device": header.device, "dtype": header.dtype, "parameters": header.parameters}
        return self._connection.open(
            self._run_dir,
            project=self._project,
            group=self._group,
            # A group is about one model, so that the setting is what tells its runs apart.
            name=name_for(label if self._group else f"{config_name} {label}"),
            job_type=job_type_for("train"),
            tags=tags_for([recompute["mode"], attention, device_type(header.device), header.dtype, config_name]),
            config={**header.config, "resolved": facts, "series": {"id": series, "first_step": header.first_step + 1}},
            id=series,
            resume="allow" if header.first_step else None,
        )

    def _is_continued(self, header: RunHeader) -> bool:
        """Whether the checkpoint is of this run directory; a run that branches off from another's is one of its own."""
        resume = header.config["training"]["resume"]
        return resume in ("auto", "none") or Path(resume).resolve().is_relative_to(self._run_dir.resolve())


def _metrics_between(path: Path, after: int, until: int) -> Iterator[dict[str, Any]]:
    """Steps after + 1 to until, as the file has them; none where there is no file, as in a branch of another run."""
    if after >= until or not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n") and after < (metrics := json.loads(line))["step"] <= until:
                yield metrics
