"""The dashboard of a project's runs in Weights & Biases: a saved workspace and a report with the same panels.

Needs the package wandb-workspaces. Nothing here reaches for a server.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from wandb_workspaces import expr, workspaces
from wandb_workspaces.reports import v2 as reports

from megaselect.compatibility import adjusted_when_saved, saved_form
from megaselect.report.wandb_names import COMPARISON, FIGURES, METRIC_NAMES

MAX_RUNS = 20  # of a panel; the app's own default, 10, is fewer than a comparison of all settings has
GRID_COLUMNS, PANEL_ROWS = 24, 10  # of a report's panel grid; two panels stand beside each other
TITLE_CHARACTERS = 128
# What the table of runs shows first: the headline.
TABLE_SUMMARY = (
    "perf/median_step_ms",
    "perf/step_ms_q20",
    "perf/step_ms_q80",
    "perf/median_tokens_per_s",
    "mem/predicted_bytes",
    "mem/measured_bytes",
    "mem/peak_allocated_bytes",
    "mem/peak_bytes",
    "perf/median_mfu",
    "perf/median_hfu",
    "perf/slowdown",
    "mem/saved_bytes",
    "train/equal",
)


@dataclass(frozen=True)
class Curve:
    """A metric of each step over the tokens seen, a line a run."""

    title: str
    metric: str


@dataclass(frozen=True)
class Bars:
    """The last or summary value of metrics, a bar a run."""

    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Whole:
    """What the run `comparison` holds: the headline table, or the figures."""

    title: str
    key: str


@dataclass(frozen=True)
class DashboardSection:
    """A part of the dashboard. text: what to read from it."""

    name: str
    text: str
    panels: tuple[Curve | Bars | Whole, ...]


SECTIONS = (
    DashboardSection(
        "Loss",
        "Lines of settings that keep to one attention choice lie on each other: recomputation changes no bit.",
        (Curve("training loss", "train/loss"), Curve("validation loss", "eval/loss")),
    ),
    DashboardSection(
        "Loss difference",
        "The loss minus that of the setting it is held against, step by step; 0 where the bits are the same. "
        "Comparisons log it; training runs do not know of each other.",
        (Curve("loss minus the reference's", "train/loss_difference"),),
    ),
    DashboardSection(
        "Memory",
        "Bytes kept for the backward pass, predicted and measured, and the peak of a step: of tensors, which only "
        "comparisons count on a CPU, and as training counts it there, of the whole process.",
        (
            Bars("saved for backward, bytes", ("mem/predicted_bytes", "mem/measured_bytes")),
            Bars("peak of a step, bytes", ("mem/peak_allocated_bytes", "mem/peak_bytes")),
        ),
    ),
    DashboardSection(
        "Throughput",
        "Tokens per second.",
        (
            Bars("median tokens per second", ("perf/median_tokens_per_s",)),
            Curve("tokens per second", "perf/tokens_per_s"),
        ),
    ),
    DashboardSection(
        "Step time",
        "Milliseconds of an optimizer step.",
        (Bars("median step, ms", ("perf/median_step_ms",)), Curve("step, ms", "perf/step_ms")),
    ),
    DashboardSection(
        "Table",
        "The headline table and the figures of a comparison, as megaselect compare wrote them.",
        (Whole("headline", COMPARISON), Whole("figures", FIGURES)),
    ),
)


def _ungroup_panels(view: Any) -> None:
    """Group the table of runs alone: panels that took over its grouping would show one mean line a comparison."""
    section = view.spec.section
    for settings in (section.settings, *(part.local_panel_settings for part in section.panel_bank_config.sections)):
        settings.use_runs_table_grouping_in_panels = False


def make_workspace(entity: str, project: str, group: str | None) -> workspaces.Workspace:
    """The saved view of a project: runs of `group` alone, or of all groups, with the table of runs grouped by it."""
    sections = [
        workspaces.Section(
            name=section.name,
            panels=[_panel(panel, index) for index, panel in enumerate(section.panels)],
            is_open=True,
            layout_settings=workspaces.SectionLayoutSettings(columns=2, rows=1),
            panel_settings=workspaces.SectionPanelSettings(x_axis=METRIC_NAMES["tokens"]),
        )
        for section in SECTIONS
    ]
    return adjusted_when_saved(workspaces.Workspace, _ungroup_panels)(
        entity=entity,
        project=project,
        name=_title(group),
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=METRIC_NAMES["tokens"], max_runs=MAX_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=_of_group(group),
            groupby=[] if group else [expr.Metric("Group")],
            order=[expr.Ordering(expr.Metric("CreatedTimestamp"), ascending=True)],  # a comparison's rows, none first
            pinned_columns=_columns(),
        ),
    )


def make_report(entity: str, project: str, group: str | None) -> reports.Report:
    """The report: each section with a sentence, its panels, and the run set that they show."""
    blocks: list[Any] = []
    for section in SECTIONS:
        # The run of the whole has neither curves nor bars, and would be an empty entry of every legend.
        whole = any(isinstance(panel, Whole) for panel in section.panels)
        job_type = f'Metric("JobType") {"==" if whole else "!="} {COMPARISON!r}'
        runs = reports.Runset(
            name=group or "all groups",
            filters=f"{_of_group(group)} and {job_type}" if group else job_type,
            order=[reports.OrderBy("CreatedTimestamp", ascending=True)],
            pinned_columns=[] if whole else _columns(),
        )
        panels = [_panel(panel, index) for index, panel in enumerate(section.panels)]
        blocks += [
            reports.H2(text=section.name),
            reports.P(text=section.text),
            reports.PanelGrid(runsets=[runs], panels=panels),
        ]
    description = "Settings of activation recomputation beside each other."
    return reports.Report(
        entity=entity, project=project, title=_title(group), description=description, blocks=blocks, width="fluid"
    )


def specification(entity: str, project: str, group: str | None) -> dict[str, Any]:
    """What would be saved on the server, as wandb-workspaces writes it: plain nested values that json.dumps takes."""
    parts = {"workspace": make_workspace(entity, project, group), "report": make_report(entity, project, group)}
    return {
        name: saved_form(part).model_dump(mode="json", by_alias=True, exclude_none=True) for name, part in parts.items()
    }


def _title(group: str | None) -> str:
    """Without the signs that wandb-workspaces takes for emojis, = among them, and no longer than a report's may be."""
    plain = "".join("-" if unicodedata.category(sign)[0] in "SC" else sign for sign in group or "settings compared")
    return f"Megaselect: {plain}"[:TITLE_CHARACTERS]


def _of_group(group: str | None) -> str:
    """As text, since the package's own expressions break at a quote in the group's name."""
    return f'Metric("Group") == {group!r}' if group else ""


def _columns() -> list[str]:
    return ["run:displayName", "run:group", *(f"summary:{name}" for name in TABLE_SUMMARY)]


def _panel(panel: Curve | Bars | Whole, index: int) -> Any:
    width = GRID_COLUMNS // 2
    layout = reports.Layout(x=width * (index % 2), y=PANEL_ROWS * (index // 2), w=width, h=PANEL_ROWS)
    if isinstance(panel, Curve):
        return reports.LinePlot(
            title=panel.title,
            x=METRIC_NAMES["tokens"],
            y=[panel.metric],
            title_x="tokens",
            smoothing_type="none",  # a difference of a bit must not be smoothed away
            max_runs_to_show=MAX_RUNS,
            layout=layout,
        )
    if isinstance(panel, Bars):
        return reports.BarPlot(
            title=panel.title,
            metrics=list(panel.metrics),
            max_runs_to_show=MAX_RUNS,
            max_bars_to_show=2 * MAX_RUNS,
            layout=layout,
        )
    if panel.key == FIGURES:
        return reports.MediaBrowser(title=panel.title, media_keys=[panel.key], num_columns=1, layout=layout)
    return reports.WeavePanelSummaryTable(table_name=panel.key, layout=layout)
