"""The specification of workspace and report, held against runs that the real SDK recorded."""

import pytest
from wandb_records import logged, summary

from megaselect.report.wandb_dashboard import specification

SECTIONS = ["Loss", "Loss difference", "Memory", "Throughput", "Step time", "Table"]


def workspace_sections(spec):
    return spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]


def report_grids(spec):
    return [block["metadata"] for block in spec["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(spec):
    """All panels of the workspace, then all of the report."""
    in_workspace = [panel for section in workspace_sections(spec) for panel in section["panels"]]
    return in_workspace + [panel for grid in report_grids(spec) for panel in grid["panelBankSectionConfig"]["panels"]]


def metrics(spec, view_type):
    return {name for panel in panels(spec) if panel["viewType"] == view_type for name in panel["config"]["metrics"]}


def conditions(runs):
    return [
        (item["key"]["section"], item["key"]["name"], item["op"], item["value"]) for item in runs["filters"]["filters"]
    ]


@pytest.fixture(scope="module")
def spec():
    return specification("someone", "project-x", "group y")


def test_workspace_and_report_have_the_same_sections_and_panels(spec):
    assert [section["name"] for section in workspace_sections(spec)] == SECTIONS
    blocks = spec["report"]["spec"]["blocks"]
    assert [block["children"][0]["text"] for block in blocks if block["type"] == "heading"] == SECTIONS
    for section, grid in zip(workspace_sections(spec), report_grids(spec), strict=True):
        assert section["isOpen"]
        shown = [(panel["viewType"], panel["config"]) for panel in section["panels"]]
        assert shown == [(p["viewType"], p["config"]) for p in grid["panelBankSectionConfig"]["panels"]]
    assert (spec["workspace"]["entity"], spec["workspace"]["project"]) == ("someone", "project-x")
    assert spec["report"]["project"] == {"name": "project-x", "entityName": "someone"}


def test_every_curve_is_in_the_history_of_the_runs(spec, recorded):
    rows = [row for records in [*recorded.runs.values(), recorded.training] for row in logged(records)]
    curves = metrics(spec, "Run History Line Plot")
    assert curves == {"train/loss", "eval/loss", "train/loss_difference", "perf/tokens_per_s", "perf/step_ms"}
    assert curves <= {name for row in rows for name in row if "tokens" in row}
    assert {p["config"]["xAxis"] for p in panels(spec) if p["viewType"] == "Run History Line Plot"} == {"tokens"}


def test_every_bar_is_in_the_summary_of_training_and_comparison_alike(spec, recorded):
    bars = metrics(spec, "Bar Chart")
    memory = {"mem/predicted_bytes", "mem/measured_bytes", "mem/peak_allocated_bytes", "mem/peak_bytes"}
    assert bars == memory | {"perf/median_tokens_per_s", "perf/median_step_ms"}
    assert bars <= summary(recorded.runs["none"]).keys()
    assert bars - {"mem/peak_allocated_bytes"} <= summary(recorded.training).keys()  # comparisons alone count it


def test_every_column_of_the_table_of_runs_is_in_a_summary(spec, recorded):
    feeds = [spec["workspace"]["spec"]["section"]["runSets"][0]["runFeed"]]
    feeds += [grid["runSets"][0]["runFeed"] for grid in report_grids(spec)[:-1]]
    unmeasured = {"perf/median_mfu", "perf/median_hfu"}  # no peak FLOP/s is on file for a CPU
    for feed in feeds:
        assert feed["columnOrder"][:2] == ["run:displayName", "run:group"]
        columns = {name.removeprefix("summary:") for name in feed["columnOrder"][2:]}
        assert columns - unmeasured <= summary(recorded.runs["fused none"]).keys()


def test_table_and_figures_are_those_of_the_comparison(spec, recorded):
    table, figures = workspace_sections(spec)[-1]["panels"]
    key = table["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
    assert logged(recorded.runs["comparison"])[0][f"{key}._type"] == "table-file"
    (media,) = figures["config"]["mediaKeys"]
    assert logged(recorded.runs["comparison"])[1][f"{media}._type"] == "html-file"


def test_run_sets_show_the_group_alone(spec):
    group = ("run", "group", "=", "group y")
    (runs,) = spec["workspace"]["spec"]["section"]["runSets"]
    assert conditions(runs) == [group]
    assert runs["grouping"] == []
    *curves, whole = [grid["runSets"] for grid in report_grids(spec)]
    assert {tuple(conditions(runs)) for (runs,) in curves} == {(group, ("run", "jobType", "!=", "comparison"))}
    assert conditions(whole[0]) == [group, ("run", "jobType", "=", "comparison")]


def test_without_a_group_the_table_is_grouped_and_the_panels_are_not():
    section = specification("someone", "project-x", None)["workspace"]["spec"]["section"]
    assert conditions(section["runSets"][0]) == []
    assert section["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]
    settings = [section["settings"], *(part["localPanelSettings"] for part in section["panelBankConfig"]["sections"])]
    assert [part["useRunsTableGroupingInPanels"] for part in settings] == [False] * (1 + len(SECTIONS))


@pytest.mark.parametrize("group", ['it\'s "so" and not', "back\\slash", "a == b 😀", 130 * "long "])
def test_any_name_of_a_group_is_taken_as_it_is(group):
    spec = specification("", "project-x", group)
    assert conditions(spec["workspace"]["spec"]["section"]["runSets"][0]) == [("run", "group", "=", group)]
    assert conditions(report_grids(spec)[0]["runSets"][0])[0] == ("run", "group", "=", group)
