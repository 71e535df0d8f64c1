"""An estimate on the console: one line a setting, one line a tensor, and the advice. 80 columns suffice."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megaselect.errors import RecomputeError
from megaselect.estimation.estimate import Estimate
from megaselect.estimation.rows import Case, EstimateRow
from megaselect.prediction.parallel import pipeline_output_bytes
from megaselect.prediction.saved_bytes import check_saves
from megaselect.prediction.weights import parameter_count
from megaselect.recomputation.plan import describe_plan
from megaselect.report.head import print_head
from megaselect.units import GIB_BYTES, MIB_BYTES, size

TENSOR_COLUMNS = ("none", "selective", "all", "full")
TIME_UNITS = ((1, 1000, "ms", 0), (1000, 1, "s", 2), (86_400, 1 / 3600, "h", 1))  # below so many seconds


def print_estimate(estimate: Estimate, console: Console, config_name: str) -> None:
    """Header, the settings of each attention choice, the tensors of a layer, and what to take."""
    print_head(console, f"megaselect estimate {config_name}: predicted, nothing was run", _facts(estimate))
    console.print(_settings_table(estimate))
    console.print()
    console.print(_tensor_table(estimate))
    console.print()
    for note in _notes(estimate):
        console.print(Text(note, "dim"))
    console.print()
    console.print(Text(estimate.advice, "bold green" if estimate.something_fits else "bold yellow"))


def _facts(estimate: Estimate) -> list[tuple[str, str]]:
    case = estimate.case
    config, parallel, target = case.config, case.parallel, case.target
    attention, name = estimate.own
    static = estimate.rows[attention][name].rank.static
    count = parameter_count(case.shape(attention), config.model.num_layers)
    master = f", master weights {size(static.master_weights)}" if static.master_weights else ""
    facts = [
        ("device", f"{target.name}, {size(target.usable_bytes)} ({target.memory_note}), {target.dtype}"),
        ("micro-batch", f"{config.training.micro_batch_size} samples of {config.model.seq_length} tokens"),
        ("parameters", f"{count:,}"),
        ("held always", f"weights {size(static.weights)}, gradients {size(static.gradients)}{master}, "
                        f"optimizer {size(static.optimizer)}"),
    ]  # fmt: skip
    if parallel.gpus > 1:
        facts[2] = ("parameters", f"{count:,} in the layers and embeddings of one tensor-parallel rank")
        facts.append(("layout", _layout(case)))
    return facts


def _layout(case: Case) -> str:
    parallel, shares = case.parallel, str(case.sharing.layout).partition(", ")[2]
    sequence = " with sequence" if parallel.sequence else ""
    within = f"tensor {parallel.tensor}{sequence}, pipeline {parallel.pipeline} x {parallel.virtual_stages}, "
    return f"{parallel.gpus} GPUs: {'' if parallel.is_run else within}data {parallel.data}{shares and f', {shares}'}"


def _settings_table(estimate: Estimate) -> Table:
    peaks = [row.rank.peak.bytes for rows in estimate.rows.values() for row in rows.values()]
    unit, unit_bytes = ("GiB", GIB_BYTES) if max(peaks) >= GIB_BYTES else ("MiB", MIB_BYTES)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(f"bytes in {unit}", no_wrap=True)
    for name in ("per layer", "kept", "working", "peak", "FLOPs", "step", "max b"):
        table.add_column(name, justify="right", no_wrap=True)
    for attention, rows in estimate.rows.items():
        table.add_row(Text(f"attention {attention}", "italic"))
        for row in rows.values():
            _add_setting(table, row, estimate, unit_bytes)
        table.add_section()
    return table


def _add_setting(table: Table, row: EstimateRow, estimate: Estimate, unit_bytes: int) -> None:
    own = (row.attention, row.name) == estimate.own
    peak = row.rank.peak.bytes
    sizes = (row.saved_bytes_per_layer, row.rank.saved, row.working_set_bytes)
    table.add_row(
        f"  {row.name}{' *' if own else ''}",
        *(_count(number / unit_bytes) for number in sizes),
        Text(_count(peak / unit_bytes), "" if peak <= estimate.case.target.usable_bytes else "red"),
        f"+{row.recompute_overhead:.1%}" if row.recompute_overhead else "–",
        _time(row.step_seconds),
        f"{row.largest_micro_batch:,}" if row.largest_micro_batch else "–",
        style="bold" if own else "",
    )


def _count(value: float) -> str:
    """With three digits or more, however small."""
    return f"{value:,.2f}" if value >= 1 else f"{value:#.3g}"


def _tensor_table(estimate: Estimate) -> Table:
    """What one layer keeps, tensor by tensor, with the config's attention; then what is kept outside the layers."""
    attention, _ = estimate.own
    rows = [estimate.rows[attention][name] for name in TENSOR_COLUMNS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(f"kept in a layer, {attention}", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    names = dict.fromkeys(name for row in rows for name in row.layer_tensors)
    for name in names:
        table.add_row(name, *(_size_or_dash(row.layer_tensors.get(name)) for row in rows))
    table.add_section()
    outside = [row.rank.saved - sum(_in_layers(row).values()) for row in rows]
    logits = [row.rank.by_name.get("logits") for row in rows]
    table.add_row("logits (once)", *(_size_or_dash(count) for count in logits))
    rest = [count - (part or 0) for count, part in zip(outside, logits, strict=True)]
    table.add_row("rest outside the layers", *(_size_or_dash(count) for count in rest))
    return table


def _in_layers(row: EstimateRow) -> dict[str, int]:
    return {name: count for name, count in row.rank.by_name.items() if name in row.layer_tensors}


def _notes(estimate: Estimate) -> list[str]:
    case = estimate.case
    notes = [
        "* this config. kept: for backward, by a micro-batch. working: the most that a layer's backward holds beyond "
        "that. FLOPs: computed again. max b: the largest micro-batch that fits; red and – do not fit."
    ]
    if not case.target.on_gpu:
        notes.append(f"Bytes are those of {case.target.dtype} on a CPU; --device h100-80gb, for example, names a GPU.")
    saves_nothing = _saves_nothing(case)
    if saves_nothing:
        notes.append(saves_nothing)
    if case.target.speed:
        notes.append(f"step: not measured; it assumes {case.target.speed.assumption}.")
    if case.parallel.gpus > 1:
        notes.append("Bytes are those of the fullest rank; communication is not counted in step.")
    if case.parallel.pipeline > 1:
        held = pipeline_output_bytes(case.shape(estimate.own[0]), case.parallel.pipeline)
        notes.append(f"A stage frees its outputs once they are sent; kept, they would hold {size(held)} more.")
    for attention, rows in estimate.rows.items():
        if "auto" in rows:
            notes.append(f"auto, {attention}: {describe_plan(rows['auto'].plan)}.")
    return notes


def _saves_nothing(case: Case) -> str:
    """Why train would refuse the config's own setting, where it would."""
    try:
        check_saves(case.config, case.target.element_bytes)
    except RecomputeError as error:
        return f"train would refuse this setting: {error}."
    return ""


def _time(seconds: float | None) -> str:
    """Three digits or more, in the unit that they are read in."""
    if seconds is None:
        return "–"
    for limit, scale, unit, decimals in TIME_UNITS:
        if seconds < limit:
            return f"{seconds * scale:.{decimals}f} {unit}"
    return f"{seconds / 86_400:,.1f} d"


def _size_or_dash(count: int | None) -> str:
    return size(count) if count else "–"
