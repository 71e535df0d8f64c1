"""A comparison in Weights & Biases: one group, in it one run a setting, and one that holds table and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from megaselect.comparison.result import Comparison, Context, SettingResult, Speed, TrainedSetting
from megaselect.comparison.step_times import slowdown
from megaselect.report.wandb_connection import WandbConnection, sdk
from megaselect.report.wandb_environment import Mode, tags_for
from megaselect.report.wandb_names import COMPARISON, FIGURES, METRIC_NAMES, device_type, run_id

MS_PER_SECOND = 1000
FAILED_EXIT_CODE = 1
# The machine's own curves would be those of the logging, not of the measuring, which is over.
SETTINGS = {"x_disable_stats": True}
# Column of the headline table -> where a setting's value stands in its run's summary.
TABLE_COLUMNS = {
    "median step ms": "perf/median_step_ms",
    "step ms, 20 %": "perf/step_ms_q20",
    "step ms, 80 %": "perf/step_ms_q80",
    "tokens/s": "perf/median_tokens_per_s",
    "saved bytes, predicted": "mem/predicted_bytes",
    "saved bytes, measured": "mem/measured_bytes",
    "peak bytes of tensors": "mem/peak_allocated_bytes",
    "peak bytes": "mem/peak_bytes",
    "mfu": "perf/median_mfu",
    "hfu": "perf/median_hfu",
    "step time against none": "perf/slowdown",
    "saved bytes saved against none": "mem/saved_bytes",
    "same bits as": "reference",
    "same bits": "train/equal",
    "failure": "failure",
}


def log_comparison(
    comparison: Comparison,
    mode: Mode,
    project: str,
    group: str,
    directory: str | Path,
    note: Callable[[str], None],
    html: Path | None = None,
) -> None:
    """Record a finished comparison in directory/wandb and, online, on the server. Never asks; failures end in a note.

    html: the self-contained report, to be logged as it is. mode, note, and what is raised: see WandbConnection.
    """
    connection = WandbConnection(mode, note, without="the comparison is complete without it")
    shared: dict[str, Any] = {"project": project, "group": group}
    if comparison.context.tokens_per_step is None:
        shared["axis"] = "step"
    for setting in comparison.settings:
        _log_setting(connection, Path(directory), shared, comparison, setting)
    run = connection.open(
        Path(directory),
        SETTINGS,
        **shared,
        name=COMPARISON,
        job_type=COMPARISON,
        tags=tags_for([*_device_tags(comparison.context), comparison.context.config_name]),
        config=_run_config(comparison.context),
        id=run_id(COMPARISON),
    )
    if run is None:
        return
    with connection.guarded():
        run.log({COMPARISON: _table(comparison)})
        if html is not None:
            run.log({FIGURES: sdk().Html(html, inject=False)})
        run.summary.update({"verdict": comparison.verdict})
        connection.announce(lambda: f"{run.project_url}/groups/{quote(group, safe='')}", Path(directory))
    if connection.records:
        connection.finish(run, exit_code=0)


def _log_setting(
    connection: WandbConnection, directory: Path, shared: dict[str, Any], comparison: Comparison, setting: SettingResult
) -> None:
    """One run: what every setting shares and its own in the configuration, then history and summary."""
    context = comparison.context
    config = _run_config(context)
    config["recompute"] = setting.recompute
    if setting.attention is not None:
        config["model"] = {**config["model"], "attention": setting.attention}
        config["model"]["attention_dropout_p"] = setting.attention_dropout_p
    own_tags = [setting.recompute["mode"], *([setting.attention] if setting.attention else [])]
    run = connection.open(
        directory,
        SETTINGS,
        **shared,
        name=setting.name,
        job_type="compare",
        tags=tags_for([*own_tags, *_device_tags(context), context.config_name]),
        config=config,
        notes=setting.note,
        id=run_id(setting.name),
    )
    if run is None:
        return
    with connection.guarded():
        for row in history_rows(context, setting) if isinstance(setting, TrainedSetting) else ():
            run.log(row)
        run.summary.update(summary_values(comparison, setting))
    if connection.records:
        connection.finish(run, FAILED_EXIT_CODE if setting.failure else 0)


def _device_tags(context: Context) -> list[str]:
    return [device_type(context.device), context.dtype]


def _run_config(context: Context) -> dict[str, Any]:
    """The shared config, and under `resolved`, as in a training run, where and how it was measured."""
    facts = ("device", "dtype", "parameters", "steps", "warmup_steps", "rounds", "torch_version", "commit", "command")
    resolved = {fact: getattr(context, fact) for fact in facts}
    return {**context.config, "resolved": resolved | (asdict(context.model) if context.model else {})}


def history_rows(context: Context, setting: TrainedSetting) -> list[dict[str, float | int]]:
    """One row a step, without what is not known of it. A step's time is the median over the rounds."""
    seconds: dict[int, list[float]] = {}
    for sample in setting.samples:
        seconds.setdefault(sample.step, []).append(sample.seconds)
    differences = _loss_differences(setting)
    rows = []
    for step, loss in enumerate(setting.losses, start=1):
        step_seconds = median(seconds[step]) if step in seconds else None
        tokens = context.tokens_per_step
        metrics = {
            "step": step,
            "tokens": step * tokens if tokens else None,
            "loss": loss,
            "loss_difference": differences[step - 1] if step <= len(differences) else None,
            "grad_norm": setting.grad_norms[step - 1] if step <= len(setting.grad_norms) else None,
            "saved_bytes": setting.saved.measured,
            "peak_bytes": _peak_bytes(setting),
            "step_ms": step_seconds * MS_PER_SECOND if step_seconds else None,
            "tokens_per_s": tokens / step_seconds if tokens and step_seconds else None,
        }
        rows.append({METRIC_NAMES[name]: value for name, value in metrics.items() if value is not None})
    return rows


def _loss_differences(setting: TrainedSetting) -> tuple[float | None, ...]:
    if setting.agreement:
        return setting.agreement.loss_differences
    # The line that the others are held against.
    return (0.0,) * len(setting.losses) if setting.recompute["mode"] == "none" else ()


def _peak_bytes(setting: TrainedSetting) -> int | None:
    """As training reports it: tensors on a GPU, which alone reserves memory, the process elsewhere."""
    return setting.peak.rss if setting.peak.reserved is None else setting.peak.allocated


def summary_values(comparison: Comparison, setting: SettingResult) -> dict[str, Any]:
    """What the headline table shows, without what is not known; ratios and savings against the first row of none."""
    if not isinstance(setting, TrainedSetting):
        return {"failure": setting.failure}
    none = next((other for other in comparison.settings if other.recompute["mode"] == "none"), None)
    values = {
        "steps": len(setting.losses) or None,
        "tokens": len(setting.losses) * (comparison.context.tokens_per_step or 0) or None,
        "train/final_loss": setting.losses[-1] if setting.losses else None,
        "train/equal": setting.agreement.equal if setting.agreement else None,
        "train/rounds_equal": setting.rounds_equal,
        "reference": setting.agreement.reference if setting.agreement else None,
        "perf/hardware_flops": setting.hardware_flops,
        "perf/model_flops": setting.model_flops,
        **_memory_values(setting),
        **_speed_values(setting.speed),
        **_values_against(none, setting),
    }
    return {name: value for name, value in values.items() if value is not None}


def _memory_values(setting: TrainedSetting) -> dict[str, int | bool | None]:
    saved, peak = setting.saved, setting.peak
    exact = None
    if saved.predicted is not None:
        exact = saved.predicted_per_layer == saved.measured_per_layer and saved.predicted == saved.measured
    return {
        "mem/peak_bytes": _peak_bytes(setting),
        "mem/predicted_peak_bytes": setting.predicted_peak_bytes,
        "mem/largest_micro_batch": setting.largest_micro_batch,
        "mem/peak_allocated_bytes": peak.allocated,
        "mem/peak_reserved_bytes": peak.reserved,
        "mem/peak_rss_bytes": peak.rss,
        "mem/predicted_bytes": saved.predicted,
        "mem/measured_bytes": saved.measured,
        "mem/saved_bytes": saved.measured,
        "mem/prediction_exact": exact,
    }


def _speed_values(speed: Speed) -> dict[str, float | None]:
    recompute = speed.recompute_seconds
    return {
        "perf/median_step_ms": speed.step_seconds.median * MS_PER_SECOND,
        "perf/step_ms_q20": speed.step_seconds.q20 * MS_PER_SECOND,
        "perf/step_ms_q80": speed.step_seconds.q80 * MS_PER_SECOND,
        "perf/forward_ms": speed.forward_seconds.median * MS_PER_SECOND,
        "perf/backward_ms": speed.backward_seconds.median * MS_PER_SECOND,
        "perf/optimizer_ms": speed.optimizer_seconds.median * MS_PER_SECOND,
        "perf/recompute_ms": None if recompute is None else recompute * MS_PER_SECOND,
        "perf/median_tokens_per_s": speed.tokens_per_s,
        "perf/median_mfu": speed.mfu,
        "perf/median_hfu": speed.hfu,
    }


def _values_against(none: SettingResult | None, setting: TrainedSetting) -> dict[str, float | int]:
    if not isinstance(none, TrainedSetting):
        return {}
    return {
        "perf/slowdown": slowdown(setting, none),
        "mem/saved_bytes": none.saved.measured - setting.saved.measured,
    }


def _table(comparison: Comparison) -> Any:
    """The headline table, a row a setting."""
    rows = []
    for setting in comparison.settings:
        values = summary_values(comparison, setting)
        rows.append([setting.name, *(values.get(name) for name in TABLE_COLUMNS.values())])
    return sdk().Table(columns=["setting", *TABLE_COLUMNS], data=rows)
