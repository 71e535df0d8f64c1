"""The way to Weights & Biases: online, offline or not at all. It never asks for a key, and its failures stop nothing.

The SDK is imported only when something is recorded: the import alone takes half a second or more.
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
from megaselect.report.wandb_environment import Mode, directory_for, mode_for, without_variables
from megaselect.report.wandb_names import NAMESPACES

if TYPE_CHECKING:
    from wandb import Run, Settings

INIT_TIMEOUT_SECONDS = 15
FINISH_TIMEOUT_SECONDS = 60  # the SDK's own default waits for ever where the network has gone
# Where a process is killed, what the SDK's service has not yet written to the run's file is lost: 15 s by default.
FLUSH_INTERVAL = ("x_transaction_log_flush_interval", 0.02)  # seconds; a resumed run must find no gap before it


class WandbConnection:
    """Opens and ends runs, and says once, in one line, where recording failed.

    mode: "auto" is online where the SDK finds an API key (environment, netrc, its settings), offline where not; the
    variables WANDB_MODE and WANDB_DISABLED may turn "auto" to offline or disabled. note: prints a sentence for the
    user. without: what a failure's note says of the rest, such as "training goes on without it".
    Raises ConfigError for "online" without a usable key.
    """

    def __init__(self, mode: Mode, note: Callable[[str], None], without: str) -> None:
        self._note = note
        self._without = without
        self._offline_because = ""
        self._mode = mode_for(mode)
        if self._mode in ("auto", "online"):
            self._choose_by_key()

    @property
    def mode(self) -> Mode:
        """What came of the mode asked for: online, offline or disabled; disabled too after a failure."""
        return self._mode

    @property
    def records(self) -> bool:
        """Whether what is recorded still goes anywhere."""
        return self._mode != "disabled"

    @property
    def offline_because(self) -> str:
        """ " (reason)" where "auto" or a server out of reach led offline; empty where offline was asked for."""
        return self._offline_because

    def _choose_by_key(self) -> None:
        """Settle "auto"; refuse "online" without a key, which the SDK would ask for on the terminal, for ever."""
        problem = ""
        with self.guarded():
            problem = _key_problem()
        if problem and self._mode == "online":
            raise _no_key(problem)
        if self._mode == "auto":
            self._mode = "offline" if problem else "online"
            self._offline_because = f" ({problem})" if problem else ""

    def open(
        self, directory: Path, settings: dict[str, Any] | None = None, axis: str = "tokens", **init: Any
    ) -> Run | None:
        """A run in directory/wandb: online where that is the mode and the server answers in time, else offline.

        The variable WANDB_DIR takes the directory's place.
        settings and init are further arguments of wandb.Settings and wandb.init. axis: the column that the others are
        drawn over. None: nothing is recorded.
        """
        if not self.records:
            return None
        directory = directory_for(directory)
        with self.guarded():
            (directory / "wandb").mkdir(parents=True, exist_ok=True)
            run = self._init(directory, settings or {}, init)
            for namespace in NAMESPACES:
                run.define_metric(f"{namespace}/*", step_metric=axis)
            return run
        return None

    def _init(self, directory: Path, settings: dict[str, Any], init: dict[str, Any]) -> Run:
        if self._mode == "online":
            try:
                return _init_run("online", directory, settings, init)
            except Exception as error:
                # Whatever kept the server away, a run on disk loses nothing.
                self._mode, self._offline_because = "offline", f" ({first_line(error)})"
                sdk().teardown()  # the SDK's service process holds the run's id for the attempt that failed
        # `wandb sync` appends what is recorded so to the run of its id, and would begin that run anew with the rest.
        return _init_run("offline", directory, settings, {**init, "resume": "allow"})

    def announce(self, url: Callable[[], str | None], directory: Path) -> None:
        """Say where the runs are: at url(), asked for only online, or in `directory` with the command that uploads."""
        if self._mode == "online":
            self._note(f"wandb: {url()}")
        elif self._mode == "offline":
            # Each resumed part is a folder of its own: the pattern finds them all, and the SDK joins them by their id.
            pattern = f"{shlex.quote(str(directory_for(directory) / 'wandb'))}/offline-run-*"
            self._note(f"wandb: offline{self._offline_because}; to upload: wandb sync {pattern}")

    def finish(self, run: Run, exit_code: int) -> None:
        """End a run, and wait a bounded time for what is still to be uploaded."""
        folder = shlex.quote(str(Path(run.dir).parent))
        with self.guarded():
            try:
                run.finish(exit_code=exit_code)
            except TimeoutError:
                self._note(f"wandb: not all was uploaded in time; to upload: wandb sync {folder}")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A failure inside ends the recording, with one note, and never what is recorded.

        The SDK fails in many ways (its own errors, OSError, pydantic's), and none of them touches the model: hence
        `except Exception`.
        """
        try:
            yield
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._mode = "disabled"
        self._note(f"wandb: {first_line(error)}; {self._without}")
        if isinstance(error, ConnectionError):  # the SDK's service process is dead
            with suppress(Exception):
                sdk().teardown()  # or it prints a traceback when Python ends


def check_key(mode: Mode) -> None:
    """Refuse "online" without a usable key before long work, not after it. Raises ConfigError. Asks no server."""
    if mode == "online":
        problem = _key_problem()
        sdk().teardown()  # its service process has no part in what is measured next
        if problem:
            raise _no_key(problem)


def _no_key(problem: str) -> ConfigError:
    return ConfigError(f"--wandb online: {problem}; set WANDB_API_KEY, or use --wandb offline")


def sdk() -> ModuleType:
    """The package wandb, imported now."""
    # Where the server is out of reach, the SDK's own error reports hold up the end of the process by 20 s.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def first_line(error: Exception) -> str:
    """What an error says, without the lines of advice that follow."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _key_problem() -> str:
    """Why the SDK could not log in without asking; empty where it could. Reaches for no network."""
    wandb = sdk()
    wandb.setup(_quiet_settings("online"))
    try:
        return "" if wandb.login(prompt=False, verify=False) else "no API key"
    except wandb.errors.AuthenticationError as error:
        return first_line(error).rstrip(".")


def _init_run(
    mode: Literal["online", "offline"], directory: Path, settings: dict[str, Any], init: dict[str, Any]
) -> Run:
    timeout = without_variables({"init_timeout": INIT_TIMEOUT_SECONDS})
    quiet = _quiet_settings(mode, reinit="create_new", **timeout, **settings)
    return sdk().init(dir=directory, settings=quiet, **init)


def _quiet_settings(mode: Literal["online", "offline"], **more: Any) -> Settings:
    name, seconds = FLUSH_INTERVAL
    flush = {name: seconds} if name in sdk().Settings.model_fields else {}  # the setting came with SDK 0.31
    return sdk().Settings(
        mode=mode,
        silent=True,
        console="off",  # the SDK would wrap stdout, and the console is ours
        finish_timeout_raises=True,
        **without_variables({"finish_timeout": FINISH_TIMEOUT_SECONDS}),
        **flush,
        **more,
    )
