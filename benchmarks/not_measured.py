"""What the runner would measure on a GPU, as a page: `python benchmarks/not_measured.py > PAGE.md`. Needs no GPU.

Every target, then every case of every part, each with the command that measures it.
"""

from __future__ import annotations

import sys
from pathlib import Path

INTRODUCTION = """# Not measured on a GPU

`python benchmarks/not_measured.py` writes this page from the runner's own lists. None of what follows has been
measured, and no figure of it is claimed anywhere. Every command stops itself after 7.5 minutes; with `--out` it skips
what an earlier start has finished. Status 3 means that the GPU failed, and that the same command goes on without what
made it fail. `--list --device cuda` names a part's cases on any machine. `make gpu` ([gpu.md](../gpu.md)) measures the
targets, checks the bits and runs the tests in one call."""


PEAK = (
    "| predicted peak of a step against `max_memory_allocated` | within 5 % | not measured | "
    "`pytest -m cuda tests/recomputation/test_peak.py` |"
)
COMPARISON = (
    "| every setting beside the others: time, memory, bits | - | not measured | "
    "`megaselect compare --config gpt2-124m --largest-micro-batch --memory-snapshot` |"
)
TRAINING = (
    "| training: a step whose values are not finite changes nothing, pinned batches, memory snapshots | pass | "
    "not measured | `pytest -m cuda tests/training tests/data` |"
)
WAITS = (
    "| a step waits for its data; a save holds it up | <= 1 % | not measured | `python benchmarks/data_wait.py`, "
    "`python benchmarks/checkpoint_stall.py` |"
)


def page() -> list[str]:
    """Its lines."""
    import torch

    from benchmarks import scale_targets, targets
    from benchmarks.arguments import PARTS, parse
    from benchmarks.session import cases_of, command

    lines = [INTRODUCTION, "", "## Targets on one H100", ""]
    lines += ["| target | wanted | measured | command |", "|---|---|---|---|"]
    for target in targets.judge([], on_gpu=True):
        lines.append(f"| {target['target']} | {target['wanted']} | not measured | `{targets.COMMAND}` |")
    lines += [PEAK, COMPARISON, TRAINING, WAITS]
    lines.append("| kernels: error to twice torch's, bits, masks, odd sizes | pass | not measured | `pytest -m cuda` |")
    lines += [
        "",
        "## Targets on two GPUs of one machine",
        "",
        "| target | wanted | measured | command |",
        "|---|---|---|---|",
    ]
    for target in scale_targets.judge([], on_gpu=True):
        lines.append(f"| {target['target']} | {target['wanted']} | not measured | `{scale_targets.COMMAND}` |")
    for part, what in PARTS.items():
        arguments = parse([part])
        lines += ["", f"## {part}: {what}", "", f"All: `python benchmarks/run.py {part} --json --out {part}.json`.", ""]
        lines += ["| case | measured | command |", "|---|---|---|"]
        for case in cases_of(arguments, torch.device("cuda"))[0]:
            lines.append(f"| {case.key} | not measured | `{command(arguments, case)}` |")
    return lines


def main() -> int:
    """Exit status: 0; 2 where packages are missing."""
    from benchmarks.packages import MissingPackagesError, refuse_without_packages

    try:
        refuse_without_packages()
    except MissingPackagesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(page()))
    return 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as in run.py
    sys.exit(main())
