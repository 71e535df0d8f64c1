"""Every case of the corpus and what verify says of it, as rows and as the document docs/verify-coverage.md."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from corpus import outcome
from corpus.architectures import all_architectures
from corpus.catalogue import FAULTS
from corpus.fault import Case, Fault
from corpus.hugging_face import REAL_FAULTS, WAYS
from corpus.variants import FORMS, VARIANTS, case_of, cells
from corpus.wrappers import WRAPPERS
from megaselect.verification.report import Report

PACKAGES = ("torch", "transformers", "torch_remat", "accelerate", "deepspeed")


@dataclass(frozen=True)
class Row:
    """Of one case: what it belongs to, whether it is as it should be, and what verify says."""

    table: str
    name: str
    column: str
    good: bool
    says: str


def rows() -> Iterator[Row]:
    """Of every case, as they run."""
    for architecture in all_architectures():
        for way, switch_on in WAYS.items():
            expected = REAL_FAULTS.get((architecture.name, way), "")
            make = functools.partial(architecture.case, switch_on)
            yield _judged("architectures", architecture.name, way, make, expected)
    for architecture, way, variant in cells():
        make = functools.partial(case_of, architecture, way, variant)
        yield _judged("variants", f"{architecture.name}, {way}", variant, make, "")
    for name, wrapper in WRAPPERS.items():
        reason = outcome.missing(wrapper.needs, wrapper.torch)
        yield _left_out("wrappers", name, reason) if reason else _judged("wrappers", name, "", wrapper.make, "")
    for fault in FAULTS.values():
        yield from _fault_rows(fault)


def _fault_rows(fault: Fault) -> Iterator[Row]:
    reason = outcome.missing(fault.needs)
    if reason:
        yield _left_out("faults", fault.name, reason)
        return
    yield _judged("faults", fault.name, "wrong", fault.wrong, fault.check, fault.says)
    yield _judged("faults", fault.name, "mended", fault.right, "")


def _judged(table: str, name: str, column: str, make: Callable[[], Case], check: str, says: str = "") -> Row:
    """check: the one that must fail, "" where the report must pass."""
    report = outcome.report_of(make)
    if not check:
        return Row(table, name, column, report.passed, "passed" if report.passed else _first_fault(report))
    found = outcome.sentence(outcome.found(report, check))
    return Row(table, name, column, found.startswith("failed ") and says in found and not report.passed, found)


def _first_fault(report: Report) -> str:
    bad = [
        check for subject in report.subjects for check in subject.checks if check.outcome in ("failed", "not checked")
    ]
    return outcome.sentence(bad[0]) if bad else "not passed"


def _left_out(table: str, name: str, reason: str) -> Row:
    return Row(table, name, "", True, f"left out: {reason}")


def markdown(found: Sequence[Row]) -> str:
    """The document."""
    by_table = {
        table: [row for row in found if row.table == table] for table in ("architectures", "wrappers", "faults")
    }
    parts = [_head(found), _architectures(by_table["architectures"]), _wrappers(by_table["wrappers"])]
    return "\n".join([*parts, _faults(by_table["faults"])])


def _head(found: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in _versions())
    cells = [row for row in found if row.table in ("architectures", "variants")]
    false_alarms = [row for row in found if not row.good and row.column != "wrong"]
    wrong = [row for row in found if row.column == "wrong"]
    return f"""# What verify was tried on

`megaselect.verify` on real architectures and wrappers, which must pass, and on seeded silent faults, which it must find
by name. Written by

    python tests/verify/survey.py --markdown

on {datetime.now(UTC):%Y-%m-%d}, on a CPU, Python {platform.python_version()},
{versions}.
The cases are in `tests/verify/corpus/`; `make test` runs every fault and wrapper, each architecture with torch's
default checkpoint and some in other ways and precisions, `make soak` all.

- {len(cells)} cells of {len(all_architectures())} architectures: {len(false_alarms)} false alarms
- {len(wrong)} faults that torch does not raise for: {sum(row.good for row in wrong)} found, by the check and in the
  words that the corpus asks for; each passes when it is mended
"""


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _architectures(found: Sequence[Row]) -> str:
    cells = {(row.name, row.column): row for row in found}
    lines = [
        "## Architectures",
        "",
        "Unmodified, tiny, random weights, training mode, labels, every dropout of the configuration at 0.1 and layers",
        "dropped at 0.4; checkpointing switched on by `activation_checkpointing_enable` of transformers: as it is,",
        "with `use_reentrant=True`, `every_n_layers=2` and `offload=True` (unpinned, as there is no",
        "accelerator). transformers has none for ConvNext: there `torch.utils.checkpoint` runs each layer.",
        "",
        f"| architecture | kind | {' | '.join(WAYS)} |",
        f"|---|---|{'---|' * len(WAYS)}",
    ]
    for architecture in all_architectures():
        marks = " | ".join(_mark(cells[architecture.name, way]) for way in WAYS)
        lines.append(f"| {architecture.name} | {architecture.kind} | {marks} |")
    notes = [
        "",
        "found: a fault of transformers 5.23 and 5.24, no false alarm. The router's logits are gathered in the first",
        "run, which has no graph in the reentrant form: the loss that balances the experts has no gradient",
        "([router-loss-reentrant](silent-errors.md#router-loss-reentrant)).",
        "",
    ]
    return "\n".join(lines + notes)


def _mark(row: Row) -> str:
    if (row.name, row.column) in REAL_FAULTS:
        return "found" if row.good else "**missed**"
    return "passed" if row.good else f"**{row.says}**"


def _variants(found: Sequence[Row]) -> str:
    lines = [
        "## Precisions and frozen parameters",
        "",
        "Of the same architectures: how many pass. Left out are the cells in which transformers itself is at fault.",
        "",
        f"| variant | {' | '.join(FORMS)} |",
        f"|---|{'---|' * len(FORMS)}",
    ]
    for variant in VARIANTS:
        lines.append(f"| {variant} | {' | '.join(_passed_of(found, variant, way) for way in FORMS)} |")
    return "\n".join([*lines, ""])


def _passed_of(found: Sequence[Row], variant: str, way: str) -> str:
    rows = [row for row in found if row.column == variant and row.name.endswith(f", {way}")]
    bad = [f"**{row.name}: {row.says}**" for row in rows if not row.good]
    return "; ".join([f"{len(rows) - len(bad)} of {len(rows)}", *bad])


def _wrappers(found: Sequence[Row]) -> str:
    lines = ["## Wrappers", "", "Around small layers with dropout.", "", "| wrapper | verify |", "|---|---|"]
    lines += [f"| {row.name} | {row.says} |" for row in found]
    return "\n".join([*lines, ""])


def _faults(found: Sequence[Row]) -> str:
    mended = {row.name: row for row in found if row.column == "mended"}
    lines = [
        "## Faults",
        "",
        "What each is, and how it is mended, is in [silent-errors.md](silent-errors.md).",
        "",
        "| fault | what verify says | mended |",
        "|---|---|---|",
    ]
    for row in found:
        if row.column != "mended":
            says = row.says if row.good else f"**{row.says}**"
            lines.append(f"| [{row.name}](silent-errors.md#{row.name}) | {says} | {_mended(mended.get(row.name))} |")
    return "\n".join([*lines, ""])


def _mended(row: Row | None) -> str:
    return "-" if row is None else _mark(row)
