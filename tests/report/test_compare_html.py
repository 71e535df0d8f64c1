"""compare.html in a headless browser, at the width of a desktop and of a phone, and what it says without one."""

import dataclasses
import json
import os
import re
import shutil
import subprocess

import pytest
from comparison_results import COMPARISON, CONTEXT, MODEL_COMPARISON

from megaselect.comparison.result import TimelinePoint
from megaselect.config import Config
from megaselect.report.compare_html import make_figures, make_html
from megaselect.report.compare_html_groups import saved_by_sequence, saved_groups, sequence_lengths

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CONFIG = Config.from_dict(
    {
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 128, "vocab_size": 128},
        "training": {"micro_batch_size": 2, "global_batch_size": 2},
    }
)
TIMELINE = tuple(TimelinePoint(place / 10, 5000 + 100 * place) for place in range(5))
FIGURES = ["throughput", "memory", "timeline", "sequence", "time", "loss"]
# Looks at the page from inside, once all is drawn: what of it is there, how wide it is, and what a legend's entry does.
LOOK = """
<script>
addEventListener("load", async () => {
  while (!document.body.dataset.drawn) await new Promise((resolve) => setTimeout(resolve, 20));
  const page = document.documentElement;
  const box = document.querySelector(".scroll");
  const plot = document.getElementById("plot-loss");
  const entry = plot.parentElement.querySelector(".legend button");
  const shown = () => plot.data.filter((trace) => trace.visible !== false).length;
  const before = shown();
  const facts = {
    width: page.clientWidth,
    scrollWidth: page.scrollWidth,
    figures: [...document.querySelectorAll(".plot")].map((one) => ({
      key: one.dataset.figure.replace("data-", ""),
      traces: one.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length,
      right: one.querySelector("svg.main-svg").getBoundingClientRect().right,
      drawn: one.querySelectorAll(".scatterlayer path, .barlayer path").length,
    })),
    tableScrolls: box.scrollWidth > box.clientWidth,
    shade: getComputedStyle(box).backgroundAttachment,
    covering: [...box.querySelectorAll("th:not(:first-child), td:not(.failed, .share)")].filter(
      (cell) => !/, 0\\.0\\d+\\)|, 0\\)/.test(getComputedStyle(cell).backgroundColor)).length,
    columns: getComputedStyle(document.querySelector(".figures")).gridTemplateColumns.split(" ").length,
    resources: performance.getEntriesByType("resource").map((one) => one.name),
  };
  entry.click();
  facts.hidden = before - shown();
  parent.postMessage(JSON.stringify(facts), "*");
});
</script>
"""
# Shows the page in a frame of its own, as wide as is wanted: a browser's window may have a least width. What the page
# tells of itself it writes down, in the document that the browser prints.
FRAME = """<!doctype html>
<script>
addEventListener("message", (message) => {
  const note = document.createElement("pre");
  note.id = "facts";
  note.textContent = message.data;
  document.body.append(note);
});
</script>
<body style="margin: 0"><iframe src="compare.html" style="border: 0; width: WIDTHpx; height: 2000px"></iframe></body>
"""


def full_comparison():
    """The comparison by hand, with a whole config, as a real one has it, and the course of a step."""
    settings = [
        dataclasses.replace(
            setting,
            recompute={"mode": setting.recompute["mode"]},
            **({} if setting.failure else {"timeline": TIMELINE}),
        )
        for setting in COMPARISON.settings
    ]
    return dataclasses.replace(
        COMPARISON,
        context=dataclasses.replace(CONTEXT, config=CONFIG.to_dict()),
        settings=tuple(settings),
    )


@pytest.fixture(scope="module")
def browser():
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"no browser: continuous integration installs {BROWSERS[0]}")
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(BROWSERS)}")
    return found


@pytest.fixture(scope="module", params=[1440, 390])
def seen(request, browser, tmp_path_factory):
    """What the page looks like from inside at this width, and what the browser's console says."""
    return request.param, *look(browser, tmp_path_factory.mktemp("page"), full_comparison(), request.param)


def look(browser, home, comparison, width):
    """(what the comparison's page looks like from inside, what the browser's console says)."""
    (home / "compare.html").write_text(make_html(comparison) + LOOK)
    (home / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command = [browser, *flags, "--virtual-time-budget=20000", "--window-size=1600,2000", "--dump-dom"]
    command += [f"--user-data-dir={home / 'profile'}", (home / "frame.html").as_uri()]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = re.search(r'<pre id="facts">(.*)</pre>', child.stdout)
    assert found, child.stderr
    return json.loads(found[1]), child.stderr


def test_every_figure_is_drawn_without_an_error(seen):
    _, facts, log = seen
    assert [figure["key"] for figure in facts["figures"]] == FIGURES
    drawn = {figure["key"]: figure["traces"] for figure in facts["figures"]}
    # Settings 3; kinds of memory 4 and the peak; phases 5; losses 3 and differences 2.
    assert drawn == {"throughput": 3, "memory": 5, "timeline": 3, "sequence": 3, "time": 5, "loss": 5}
    assert all(figure["drawn"] for figure in facts["figures"])
    assert "CONSOLE" not in log


def test_the_page_is_as_wide_as_the_window_and_the_table_scrolls_by_itself(seen):
    width, facts, _ = seen
    assert facts["width"] == facts["scrollWidth"] == width
    assert all(figure["right"] <= width for figure in facts["figures"])
    assert facts["tableScrolls"] == (width == 390)
    assert facts["columns"] == (1 if width == 390 else 2)


def test_a_shade_shows_that_the_table_goes_on(seen):
    """Its cover moves with the table; but for the first column, no cell hides it."""
    _, facts, _ = seen
    assert (facts["shade"], facts["covering"]) == ("local, scroll", 0)


def test_an_entry_of_a_legend_hides_its_lines(seen):
    _, facts, _ = seen
    assert facts["hidden"] == 1


def test_nothing_is_fetched(seen):
    _, facts, _ = seen
    assert facts["resources"] == []


@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_of_any_model_is_drawn_as_wide_as_the_window(width, browser, tmp_path):
    settings = [dataclasses.replace(setting, timeline=TIMELINE) for setting in MODEL_COMPARISON.trained]
    facts, log = look(browser, tmp_path, dataclasses.replace(MODEL_COMPARISON, settings=tuple(settings)), width)
    drawn = {figure["key"]: figure["traces"] for figure in facts["figures"]}
    # Settings 3; parameters, optimizer, gradients, in and outside the layers; phases 5; losses 3 and differences 2.
    assert drawn == {"throughput": 3, "memory": 6, "timeline": 3, "time": 5, "loss": 5}
    assert all(figure["drawn"] and figure["right"] <= width for figure in facts["figures"])
    assert facts["width"] == facts["scrollWidth"] == width
    assert (facts["resources"], "CONSOLE" in log) == ([], False)


def test_the_page_of_any_model_says_what_it_is_of():
    page = make_html(MODEL_COMPARISON)
    assert "Net, 2,587,392 parameters (2 layers, batch 4x16x32 float32), float32 on cpu, 2 threads" in page
    assert "<li>torch SAC: around each layer</li><li>HF checkpointing is left out: Net has no" in page
    assert "over the same batch, with torch.optim.AdamW, lr 0.0001; the order" in page
    head = page.partition("<tbody>")[0].rpartition("<thead>")[2]
    assert "tokens/s" not in head
    throughput, memory, *_ = make_figures(MODEL_COMPARISON)
    assert [trace.x[0] for trace in throughput.figure.data] == pytest.approx([1 / 0.256, 1 / 0.320, 1 / 0.128])
    assert [trace.marker.symbol for trace in throughput.figure.data] == ["circle", "circle", "diamond"]
    held = {trace.name: [round(value * 2**20) for value in trace.x] for trace in memory.figure.data}
    assert held["in the layers"] == [4096 - 24, 1024 - 24, 2048 - 24]
    assert held["outside the layers"] == [24, 24, 24]


def test_what_is_not_known_is_a_dash_or_left_out():
    page = make_html(full_comparison())
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("<tbody>")[2].partition("</tbody>")[0])
    cells = [re.sub("<[^>]+>", "|", row) for row in rows]
    assert "MFU" not in page.partition("<tbody>")[0].rpartition("<thead>")[2]
    assert cells[0].count("—") == 2  # largest micro-batch, bits
    assert "32" in cells[1]
    assert "equal" in cells[1]
    assert "differ from step 2" in cells[2]
    assert cells[3].endswith("did not train: out of memory|")


def test_text_from_outside_stays_text():
    nasty = "</script><b>"
    comparison = full_comparison()
    none = dataclasses.replace(comparison.settings[0], name=nasty)
    context = dataclasses.replace(comparison.context, command=nasty, config_name=nasty, device=nasty, notes=(nasty,))
    page = make_html(dataclasses.replace(comparison, context=context, settings=(none,), verdict=nasty))
    assert nasty not in page


def test_a_setting_that_was_not_followed_has_no_timeline():
    settings = [dataclasses.replace(setting, timeline=()) for setting in full_comparison().trained]
    figures = make_figures(dataclasses.replace(full_comparison(), settings=tuple(settings)))
    assert [figure.key for figure in figures] == [key for key in FIGURES if key != "timeline"]


@pytest.mark.parametrize(
    ("steps", "ticks"),
    [
        (1, [1]),
        (7, [1, 2, 3, 4, 5, 6, 7]),
        (8, [1, 2, 4, 6, 8]),
        (15, [1, 2, 4, 6, 8, 10, 12, 14]),
        (22, [1, 5, 10, 15, 20]),
        (160, [1, 50, 100, 150]),
    ],
)
def test_steps_are_marked_by_a_few_whole_numbers(steps, ticks):
    comparison = full_comparison()
    longer = dataclasses.replace(comparison.settings[0], losses=tuple(5 - step / 1000 for step in range(steps)))
    figures = make_figures(dataclasses.replace(comparison, settings=(longer,)))
    (loss,) = (figure for figure in figures if figure.key == "loss")
    assert list(loss.figure.layout.xaxis.tickvals) == ticks


def test_bytes_by_sequence_length_are_those_of_the_theory():
    """With probs the bytes grow by s² and s; without them by s alone."""
    context = full_comparison().context
    none, full, fused, _ = full_comparison().settings
    lengths = sequence_lengths(context)
    assert lengths == [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    scores = 2 * 2 * 4 * (4 + 4 + 1)  # layers, micro-batch, heads; probs, dropped probs and mask
    unfused, tiles, inputs = (saved_by_sequence(context, setting, lengths) for setting in (none, fused, full))
    statistics = 2 * 2 * 4 * 4  # layers, micro-batch, heads, bytes of a log-sum-exp
    for place, length in enumerate(lengths):
        assert unfused[place] - tiles[place] == scores * length**2 - statistics * length
        assert inputs[place] - 16 == (inputs[0] - 16) // 32 * length  # 16: sample indices


def test_every_name_of_the_theory_has_its_group():
    from megaselect.prediction.saved_bytes import LayerShape, saved_tensors
    from megaselect.recomputation.plan import make_plan

    none = full_comparison().settings[0]
    names = {row.name: 1 for row in saved_tensors(LayerShape.of(CONFIG, 4), make_plan(CONFIG.recompute, 2))}
    saved = dataclasses.replace(none.saved, measured_by_name=names)
    found = saved_groups(dataclasses.replace(none, saved=saved))
    assert found["outside the layers"] == len(
        {"token indices", "sample indices", "final layernorm input", "final layernorm statistics"}
        | {"final layernorm output", "logits", "targets", "log-sum-exp"}
    )
    assert sum(found.values()) == len(names)
