"""The words and numbers that a user reads, as plain text: no terminal, no colour."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from megaselect.training.events import Metrics, RunHeader, RunSummary, SavedReport
from megaselect.units import size

MEGATRON_NOTE = "keeps the scores; Megatron-LM's selective means core_attn"
COMPILE_NOTE = "note: compiling the layers in the first step, which may take minutes"
SAMPLE_TITLE = "sample of text that the model writes"
BLANKS_SHOWN = 16  # in a row, of a sample
LIST_COLUMNS = 80
LAYERS_SHOWN = 8  # of those whose bytes differ


class Line(NamedTuple):
    """A line of a report. style: "", "good" or "bad". indent: columns by which its continuation lines are set in."""

    text: str
    style: str = ""
    indent: int = 2


def without_controls(content: str) -> str:
    """A sample may hold any: U+FFFD for control characters, escape among them, and marks that reverse text."""
    return "".join(char if char in "\n\t" or unicodedata.category(char)[0] != "C" else "\ufffd" for char in content)


def sample_lines(sample: str) -> list[str]:
    """A sample as it is shown: of blanks in a row BLANKS_SHOWN at most, none at a line's end; of empty lines one.

    A small model cannot count the blanks that it writes one by one.
    """
    lines = [line.rstrip() for line in sample.expandtabs().split("\n")]
    shown = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    if shown and not shown[-1]:
        shown.pop()
    return [re.sub(f" {{{BLANKS_SHOWN},}}", " " * BLANKS_SHOWN, line) for line in shown]


def duration(seconds: float) -> str:
    """1:05, 2:03:04, 3d 04:05:06."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def header_rows(header: RunHeader) -> list[tuple[str, str]]:
    """Label and value, in the order of the header; an empty label continues the row above."""
    recompute = [("recompute", header.recompute)]
    settings = header.config["recompute"]
    if (
        settings["mode"] == "selective"
        and set(settings["modules"]) == {"softmax", "dropout"}
        and header.config["model"]["attention"] == "unfused"
    ):
        recompute.append(("", MEGATRON_NOTE))
    return [
        ("device", header.device),
        *([("ranks", header.ranks)] if header.ranks else []),
        ("dtype", header.dtype),
        ("model", header.model),
        ("parameters", f"{header.parameters:,}"),
        ("attention", header.attention),
        *recompute,
        *([("compile", "each layer, by torch.compile")] if header.config["training"]["compile"] else []),
        ("data", header.data),
        ("steps", _steps(header)),
        ("run directory", header.run_dir),
    ]


def _steps(header: RunHeader) -> str:
    if header.first_step >= header.max_steps:
        return f"{header.max_steps:,}, all done before"
    if header.first_step:
        return f"{header.first_step + 1:,} to {header.max_steps:,} (resumed)"
    return f"{header.max_steps:,}"


def saved_lines(report: SavedReport) -> list[Line]:
    """Predicted and measured bytes, and what settings other than the run's own would store."""
    lines = _equal_lines(report) if report.matches else _difference_lines(report)
    alternatives = report.alternatives.items()
    others = [f"{name} {size(count)}" for name, count in alternatives if name != report.setting]
    return [*lines, *(Line(line, indent=17) for line in _listed("other settings:  ", others))]


def _listed(label: str, items: Sequence[str]) -> list[str]:
    """Items with commas between them in lines of LIST_COLUMNS, none of them broken; below the label are blanks."""
    rows: list[list[str]] = []
    for item in items:
        if rows and len(label) + len(", ".join([*rows[-1], item])) < LIST_COLUMNS:
            rows[-1].append(item)
        else:
            rows.append([item])
    starts = [label, *[" " * len(label)] * (len(rows) - 1)]
    ends = [*[","] * (len(rows) - 1), ""]
    return [start + ", ".join(row) + end for start, row, end in zip(starts, rows, ends, strict=False)]


def _equal_lines(report: SavedReport) -> list[Line]:
    """One line where all layers store the same, else one for each size."""
    names_of: dict[int, list[str]] = {}
    for name, count in report.predicted.items():
        names_of.setdefault(count, []).append(name)
    uniform = len(names_of) == 1 and not any("-" in name for name in report.predicted)
    lines = []
    for label, (count, names) in zip(["saved per layer:", *[""] * len(names_of)], names_of.items(), strict=False):
        where = "(equal to the byte)" if uniform else f"in {_layer_ranges(names)}"
        text = f"{label:<16} predicted {size(count)}, measured {size(report.measured[names[0]])} {where}"
        lines.append(Line(text, "good", indent=17))
    total = f"predicted {report.predicted_total:,} bytes, measured {report.measured_total:,} bytes"
    return [*lines, Line(f"saved in all:    {total}", "good", indent=17)]


def _layer_ranges(names: list[str]) -> str:
    """["layers.0", "layers.1", "layers.4-5"] -> "layers 0-1, chunk 4-5"."""
    spans: list[list[int]] = []
    chunks: list[str] = []
    for name in names:
        number = name.removeprefix("layers.")
        if "-" in number:
            chunks.append(number)
        elif spans and spans[-1][1] + 1 == int(number):
            spans[-1][1] = int(number)
        else:
            spans.append([int(number), int(number)])
    layers = [f"{first}" if first == last else f"{first}-{last}" for first, last in spans]
    several = len(layers) > 1 or any("-" in span for span in layers)
    parts = [f"layer{'s' if several else ''} {', '.join(layers)}"] if layers else []
    parts += [f"chunk{'s' if len(chunks) > 1 else ''} {', '.join(chunks)}"] if chunks else []
    return ", ".join(parts)


def _difference_lines(report: SavedReport) -> list[Line]:
    """A warning with both numbers for each layer that differs, and for the total."""
    names = list(dict.fromkeys([*report.predicted, *report.measured]))
    pairs = [(name, report.predicted.get(name, 0), report.measured.get(name, 0)) for name in names]
    differing = [(name, predicted, measured) for name, predicted, measured in pairs if predicted != measured]
    lines = [Line("WARNING: the bytes saved for backward are not the bytes predicted", "bad")]
    shown = [*differing[:LAYERS_SHOWN], ("in all", report.predicted_total, report.measured_total)]
    for name, predicted, measured in shown:
        text = f"predicted {predicted:,} bytes, measured {measured:,} bytes ({measured - predicted:+,})"
        lines.append(Line(f"  {name}: {text}", "bad", indent=4))
    if len(differing) > LAYERS_SHOWN:
        lines.insert(-1, Line(f"  and {len(differing) - LAYERS_SHOWN} more layers", "bad"))
    return [*lines, Line("  Training goes on; memory will not be as planned.", "bad")]


def step_fields(metrics: Metrics, seconds_left: float) -> list[str]:
    """Loss, tokens/s, time left, skipped steps, MFU and gradient norm, in order of importance.

    What is not known is left out, but for a loss that is not finite. Numbers end in one column from line to line.
    """
    fields = [
        _field("loss {:>7.4f}", metrics["loss"]) or f"loss {'-':>7}",
        _field("{} tokens/s", None if metrics["tokens_per_s"] is None else _rate(metrics["tokens_per_s"])),
        f"ETA {_time_left(seconds_left):>7}",
        _field("skipped {:>3,}", metrics.get("skipped_steps") or None),
        _field("mfu {:>5.1%}", metrics["mfu"]),
        _field("grad norm {:.3g}", metrics["grad_norm"]),
    ]
    return [field for field in fields if field]


def _rate(value: float) -> str:
    """Seven columns: thousands to 999,999, then millions."""
    return f"{value:>7,.0f}" if value < 999_999.5 else f"{value / 1e6:>6.2f}M"


def _time_left(seconds: float) -> str:
    """As `duration` to ten hours, then without seconds and without minutes: seven columns suffice."""
    if round(seconds) < 36_000:
        return duration(seconds)
    minutes = round(seconds / 60)
    if minutes < 1440:
        return f"{minutes // 60}h {minutes % 60:02}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02}h"


def evaluation_fields(split: str, done: int, samples: int, seconds_left: float | None) -> list[str]:
    """How far an evaluation is, and the time that it will take, where that is known."""
    fields = [f"evaluating on the {split} split: {done:,} of {samples:,} samples"]
    return fields if seconds_left is None else [*fields, f"ETA {duration(seconds_left)}"]


def _field(template: str, value: float | str | None) -> str:
    return "" if value is None else template.format(value)


def fitting(fields: list[str], width: int) -> str:
    """As many of the first fields as fit into `width` columns, and the first one always."""
    line = fields[0]
    for field in fields[1:]:
        if len(f"{line}  {field}") > width:
            break
        line += f"  {field}"
    return line


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Label and value of the closing table; what is not known is left out."""
    saved = _words(("{} for backward", _size(summary.saved_bytes)), ("({:,} bytes)", summary.saved_bytes))
    speed = _words(
        ("{:,.0f} tokens/s", summary.tokens_per_s),
        ("{:,.1f} ms per step (medians)", summary.step_ms),
        ("mfu {:.1%}", summary.mfu),
        ("hfu {:.1%}", summary.hfu),
        joint=", ",
    )
    best = "best {:.4f}, earlier" if summary.valid_loss is None else "(best {:.4f})"
    continued = f"the same command with --run-dir {summary.run_dir} goes on from step {summary.steps:,}"
    rows = [
        ("steps", f"{summary.steps:,} ({summary.tokens:,} tokens) in {duration(summary.seconds)}"),
        ("skipped steps", f"{summary.skipped_steps:,}" if summary.skipped_steps else ""),
        ("final loss", _words(("{:.4f}", summary.final_loss))),
        ("valid loss", _words(("{:.4f}", summary.valid_loss), (best, summary.best_valid_loss))),
        ("test loss", _words(("{:.4f}", summary.test_loss))),
        ("loss spikes", f"{summary.loss_spikes:,}" if summary.loss_spikes else ""),
        ("speed", speed),
        ("time by phase", phase_shares(summary)),
        ("saved", saved),
        ("peak memory", _words((f"{{}} {summary.peak_kind}", _size(summary.peak_bytes)))),
        ("recompute", summary.recompute),
        ("run directory", summary.run_dir),
        ("to continue", continued if summary.interrupted else ""),
    ]
    return [(label, value) for label, value in rows if value]


def summary_title(summary: RunSummary) -> str:
    """Whether the run got to its end, and what stopped it where not."""
    if not summary.interrupted:
        return "stopped by a callback" if summary.stopped_by else "finished"
    return f"interrupted by {'--exit-after' if summary.stopped_by == 'exit-after' else summary.stopped_by}"


def phase_shares(summary: RunSummary) -> str:
    """Share of a step that each phase takes, and the rest: in tenths of a per cent, which sum to 100 %.

    They are made from medians, which do not add up as the phases of one step do. The rest is what the phases' medians
    leave of the step's: time between the phases, and what the medians differ by. Where they exceed the step's, the
    shares are those of their sum, and there is no rest.
    """
    if not summary.step_ms or not summary.phase_ms:
        return ""
    spans = {**summary.phase_ms, "rest": max(summary.step_ms - sum(summary.phase_ms.values()), 0.0)}
    tenths = _whole_shares(list(spans.values()), 1000)
    shares = [(phase, count) for phase, count in zip(spans, tenths, strict=True) if count or phase != "rest"]
    return ", ".join(f"{phase} {count / 10:.1f}%" for phase, count in shares)


def _whole_shares(parts: Sequence[float], units: int) -> list[int]:
    """Whole numbers like `parts` that sum to `units`: rounded down, and one more for the largest remainders."""
    exact = [units * part / sum(parts) for part in parts]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: units - sum(counts)]:
        counts[place] += 1
    return counts


def data_wait_note(share: float) -> str:
    """What to do where `share` of the steps' time is spent waiting for data."""
    return (
        f"note: steps spend {share:.0%} of their time waiting for data: raise --data.prefetch, or put the data on a "
        "faster disk"
    )


def _size(count: int | None) -> str | None:
    return None if count is None else size(count)


def _words(*parts: tuple[str, float | str | None], joint: str = " ") -> str:
    """The templates whose value is known, filled in."""
    return joint.join(template.format(value) for template, value in parts if value is not None)
