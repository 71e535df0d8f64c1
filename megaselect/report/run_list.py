"""What run directories say: from run.json, config.yaml, the end of metrics.jsonl and the lock. No torch.

Nothing that lies there stops the listing: what cannot be read is a problem of that run, and named.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from megaselect.config import RecomputeConfig
from megaselect.errors import RunDirectoryError
from megaselect.recomputation.presets import setting_label
from megaselect.training.metrics_file import METRICS_NAME, read_tail
from megaselect.training.run_dir import CONFIG_NAME
from megaselect.training.run_lock import is_locked
from megaselect.training.run_record import RECORD_NAME, Segment, read_segments

LEVELS = 2  # below a directory that is named, at which runs are looked for
_SPEED_LINES = 20
_LARGEST_FILE_BYTES = 2**20  # of a config.yaml or state.json
_MAY_HAVE_NO_STEP = ("starting", "running", "failed")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class ListedRun:
    """A run as its directory shows it; None: not known.

    state: starting, running, finished, stopped, failed, killed (it said that it ran, and no process holds its lock) or
    unknown. setting: attention and recompute, as a comparison calls them. compiled: whether torch.compile was on.
    layout: of the ranks of the last start, see Layout.to_dict.
    starts: how often it was started. tokens_per_s: median of the last steps. changed: Unix time in seconds.
    """

    path: str
    state: str = "unknown"
    reason: str | None = None
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    best_valid_loss: float | None = None
    setting: str | None = None
    compiled: bool | None = None
    layout: dict[str, int | str] | None = None
    tokens_per_s: float | None = None
    changed: float = 0.0
    starts: int = 0
    problems: list[str] = field(default_factory=list)


def find_runs(places: Iterable[Path]) -> Iterator[Path]:
    """Run directories among the places and below them, each once, in the order of their names."""
    seen: set[Path] = set()
    for place in places:
        for run_dir in _below(place, LEVELS):
            home = run_dir.resolve()
            if home not in seen:
                seen.add(home)
                yield run_dir


def _below(place: Path, levels: int) -> Iterator[Path]:
    if _is_run(place):
        yield place
    elif levels:
        with contextlib.suppress(OSError):
            inside = sorted(Path(entry.path) for entry in os.scandir(place) if entry.is_dir() and entry.name[0] != ".")
            for path in inside:
                yield from _below(path, levels - 1)


def _is_run(path: Path) -> bool:
    return (path / RECORD_NAME).is_file() or ((path / CONFIG_NAME).is_file() and (path / METRICS_NAME).is_file())


def read_run(run_dir: Path) -> ListedRun:
    """Everything about one run. Raises nothing for what lies there."""
    run = ListedRun(str(run_dir))
    _add_config(run, run_dir)
    lines = _last_metrics(run, run_dir)
    if lines:
        _add_metrics(run, lines)
    _add_best(run, run_dir)
    _add_state(run, run_dir)
    if not lines and not run.problems and run.state not in _MAY_HAVE_NO_STEP:
        run.problems.append(f"{METRICS_NAME} holds no step")
    for name in (METRICS_NAME, RECORD_NAME, CONFIG_NAME):
        with contextlib.suppress(OSError):
            run.changed = max(run.changed, (run_dir / name).stat().st_mtime)
    return run


def _add_config(run: ListedRun, run_dir: Path) -> None:
    try:
        config = yaml.load(_read(run_dir / CONFIG_NAME), Loader=_LOADER)  # a SafeLoader: plain values only
        run.max_steps = _whole(config["training"]["max_steps"])
        run.setting = setting_label(config["model"]["attention"], RecomputeConfig.model_validate(config["recompute"]))
        run.compiled = config["training"].get("compile") is True
    except OSError as error:
        run.problems.append(f"{CONFIG_NAME}: {error.strerror}")
    except (yaml.YAMLError, ValidationError, KeyError, TypeError, ValueError, RecursionError):
        run.problems.append(f"{CONFIG_NAME} is not a run's config")


def _last_metrics(run: ListedRun, run_dir: Path) -> list[dict[str, Any]]:
    try:
        return read_tail(run_dir, _SPEED_LINES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        run.problems.append(f"{METRICS_NAME}: {error.strerror}" if isinstance(error, OSError) else str(error))
        return []


def _add_metrics(run: ListedRun, lines: list[dict[str, Any]]) -> None:
    run.step, run.loss = lines[-1]["step"], _number(lines[-1].get("loss"))
    speeds = [speed for line in lines if (speed := _number(line.get("tokens_per_s"))) is not None]
    run.tokens_per_s = statistics.median(speeds) if speeds else None
    run.best_valid_loss = _least(_number(line.get("valid_loss")) for line in lines)


def _add_best(run: ListedRun, run_dir: Path) -> None:
    """The newest checkpoint knows the best of the whole run; the last lines may have a better one since."""
    newest = max((run_dir / "checkpoints").glob("step-*/state.json"), default=None)
    if newest is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            saved = _number(json.loads(_read(newest))["state"]["best_valid_loss"])
            run.best_valid_loss = _least((run.best_valid_loss, saved))


def _add_state(run: ListedRun, run_dir: Path) -> None:
    locked = is_locked(run_dir)
    segments = _segments(run, run_dir)  # after the lock: a run writes its end before it lets go
    run.starts = len(segments)
    said = segments[-1].state if segments else None
    run.layout = segments[-1].layout if segments else None
    if said == "running":
        run.state = "killed" if locked is False else "running"
    elif locked:
        run.state = "starting" if said else "running"
    elif said:
        run.state, run.reason = said, segments[-1].reason
    elif run.step is not None and run.step == run.max_steps:
        run.state = "finished"  # by a version that kept no record


def _segments(run: ListedRun, run_dir: Path) -> list[Segment]:
    try:
        return read_segments(run_dir)
    except RunDirectoryError:
        run.problems.append(f"{RECORD_NAME} is not a run's record")
        return []


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE_BYTES + 1)
    if len(content) > _LARGEST_FILE_BYTES:
        raise ValueError("too large")
    return content


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None and not math.isnan(value)), default=None)
