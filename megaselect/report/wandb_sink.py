"""Weights & Biases. It never asks for a key, and where it fails, training goes on without it.

The SDK is imported only when a run is recorded: the import alone takes half a second or more.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from megaselect.errors import ConfigError
from megaselect.training.events import Metrics, RunHeader, RunSummary, StoredReport

if TYPE_CHECKING:
    from wandb import Run, Settings

Mode = Literal["auto", "online", "offline", "disabled"]
INIT_TIMEOUT_SECONDS = 15
FINISH_TIMEOUT_SECONDS = 60  # the SDK's own default waits for ever where the network has gone
INTERRUPTED_EXIT_CODE = 130  # as a shell reports Ctrl-C
METRIC_NAMES = {
    "step": "step",
    "samples": "samples",
    "tokens": "tokens",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "stored_bytes": "mem/stored_bytes",
    "peak_bytes": "mem/peak_bytes",
    "step_ms": "perf/step_ms",
    "tokens_per_s": "perf/tokens_per_s",
    "mfu": "perf/mfu",
    "hfu": "perf/hfu",
}
SUMMARY_NAMES = {
    "steps": "steps",
    "tokens": "tokens",
    "seconds": "perf/seconds",
    "final_loss": "train/final_loss",
    "valid_loss": "eval/final_loss",
    "best_valid_loss": "eval/best_loss",
    "tokens_per_s": "perf/median_tokens_per_s",
    "step_ms": "perf/median_step_ms",
    "mfu": "perf/median_mfu",
    "hfu": "perf/median_hfu",
    "stored_bytes": "mem/stored_bytes",
    "peak_bytes": "mem/peak_bytes",
    "sample": "sample",
    "interrupted": "interrupted",
}


class WandbSink:
    """Records a run in run_dir/wandb and, online, on the server.

    mode: "auto" is online where the SDK finds an API key (environment, netrc, its settings), offline where not; the
    variable WANDB_MODE may turn "auto" to offline or disabled. note: prints a sentence for the user.
    Raises ConfigError for "online" without a usable key.
    """

    def __init__(
        self, mode: Mode, project: str, group: str | None, run_dir: str | Path, note: Callable[[str], None]
    ) -> None:
        self._project = project
        self._group = group
        self._run_dir = Path(run_dir)
        self._note = note
        self._run: Run | None = None
        self._tokens: int | None = None
        self._offline_because = ""
        self._mode = _switch(mode)
        if self._mode in ("auto", "online"):
            self._choose_by_key()

    def _choose_by_key(self) -> None:
        """Settle "auto"; refuse "online" without a key, which the SDK would ask for on the terminal, for ever."""
        problem = ""
        with self._guarded():
            problem = _key_problem()
        if problem and self._mode == "online":
            raise ConfigError(f"--wandb online: {problem}; set WANDB_API_KEY, or use --wandb offline")
        if self._mode == "auto":
            self._mode = "offline" if problem else "online"
            self._offline_because = f" ({problem})" if problem else ""

    def start(self, header: RunHeader) -> None:
        """Open the run; a resumed one goes on under the id that run_dir/wandb/run_id holds."""
        if self._mode == "disabled":
            return
        self._tokens = None if header.first_step else 0
        with self._guarded():
            self._run = self._open(header)
            for namespace in ("train", "eval", "mem", "perf"):
                self._run.define_metric(f"{namespace}/*", step_metric="tokens")
            self._id_file.write_text(self._run.id, encoding="utf-8")
            self._note(f"wandb: {self._run.url}" if self._mode == "online" else self._offline_note())

    def stored(self, report: StoredReport) -> None:
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
        self._log({METRIC_NAMES.get(key, key): value for key, value in metrics.items() if value is not None})

    def evaluation(self, step: int, loss: float) -> None:
        """Log the validation loss at the tokens seen so far."""
        tokens = {} if self._tokens is None else {"tokens": self._tokens}
        self._log({"step": step, "eval/loss": loss, **tokens})

    def note(self, text: str) -> None:
        """Notes are for the console."""

    def finish(self, summary: RunSummary) -> None:
        """Write the summary, and wait a bounded time for what is still to be uploaded."""
        values = {name: getattr(summary, field) for field, name in SUMMARY_NAMES.items()}
        self._summarise({name: value for name, value in values.items() if value is not None})
        if self._run is None:
            return
        folder = shlex.quote(str(Path(self._run.dir).parent))
        with self._guarded():
            try:
                self._run.finish(exit_code=INTERRUPTED_EXIT_CODE if summary.interrupted else 0)
            except TimeoutError:
                self._note(f"wandb: not all was uploaded in {FINISH_TIMEOUT_SECONDS} s; to upload: wandb sync {folder}")
        self._run = None

    def _log(self, values: dict[str, Any]) -> None:
        if self._run is not None:
            with self._guarded():
                self._run.log(values)

    def _summarise(self, values: dict[str, Any]) -> None:
        if self._run is not None:
            with self._guarded():
                self._run.summary.update(values)

    def _open(self, header: RunHeader) -> Run:
        """Online where that is the mode and the server answers in time, else offline."""
        if self._mode == "online":
            try:
                return self._init("online", header)
            except Exception as error:
                # Whatever kept the server away, a run on disk loses nothing.
                self._mode, self._offline_because = "offline", f" ({_first_line(error)})"
        return self._init("offline", header)

    def _init(self, mode: Literal["online", "offline"], header: RunHeader) -> Run:
        recompute = header.config["recompute"]["mode"]
        device_type = "cpu" if header.device.startswith("cpu") else "cuda"
        facts = {"device": header.device, "dtype": header.dtype, "parameters": header.parameters}
        settings = _quiet_settings(mode, reinit="create_new", init_timeout=INIT_TIMEOUT_SECONDS)
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        return _sdk().init(
            project=self._project,
            group=self._group,
            name=os.environ.get("WANDB_NAME", f"{Path(header.config_name).stem}-{recompute}"),
            job_type="train",
            tags=[recompute, device_type, header.dtype],
            config={**header.config, "resolved": facts},
            dir=self._run_dir,
            id=self._id_file.read_text(encoding="utf-8") if header.first_step and self._id_file.exists() else None,
            resume="allow" if header.first_step else None,
            settings=settings,
        )

    @property
    def _id_file(self) -> Path:
        return self._run_dir / "wandb" / "run_id"

    def _offline_note(self) -> str:
        # Each resumed part is a folder of its own: the pattern finds them all, and the SDK joins them by their id.
        pattern = f"{shlex.quote(str(self._run_dir / 'wandb'))}/offline-run-*"
        return f"wandb: offline{self._offline_because}; to upload: wandb sync {pattern}"

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A failure inside ends the recording, with one note, and never the training.

        The SDK fails in many ways (its own errors, OSError, pydantic's), and none of them touches the model: hence
        `except Exception`.
        """
        try:
            yield
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run, self._mode = None, "disabled"
        self._note(f"wandb: {_first_line(error)}; training goes on without it")
        if isinstance(error, ConnectionError):  # the SDK's service process is dead
            with suppress(Exception):
                _sdk().teardown()  # or it prints a traceback when Python ends


def _switch(mode: Mode) -> Mode:
    """`auto` heeds the SDK's own switch."""
    if mode == "auto" and os.environ.get("WANDB_MODE") == "offline":
        return "offline"
    return "disabled" if mode == "auto" and os.environ.get("WANDB_MODE") == "disabled" else mode


def _key_problem() -> str:
    """Why the SDK could not log in without asking; empty where it could. Reaches for no network."""
    wandb = _sdk()
    wandb.setup(_quiet_settings("online"))
    try:
        return "" if wandb.login(prompt=False, verify=False) else "no API key"
    except wandb.errors.AuthenticationError as error:
        return _first_line(error).rstrip(".")


def _quiet_settings(mode: Literal["online", "offline"], **more: Any) -> Settings:
    return _sdk().Settings(
        mode=mode,
        silent=True,
        console="off",  # the SDK would wrap stdout, and the console is ours
        finish_timeout=FINISH_TIMEOUT_SECONDS,
        finish_timeout_raises=True,
        **more,
    )


def _sdk() -> ModuleType:
    # Where the server is out of reach, the SDK's own error reports hold up the end of the process by 20 s.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
