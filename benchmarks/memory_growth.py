"""Does the process grow while it trains? `python benchmarks/memory_growth.py`

Resident size at step 20, halfway and at the end; exit 1 where the second half adds more than 2 %. Below 40 steps the
allocator has not settled by halfway, and the growth is shown but not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

SETTLED_STEP = 20
ALLOWED_GROWTH = 0.02


def resident_bytes() -> int:
    """The process's resident size now, by Linux's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(config_name: str, setting: Any, steps: int, device: Any) -> dict[int, int]:
    """Step -> resident bytes after it, at step 20, steps/2 and steps. setting: a BenchmarkSetting."""
    from benchmarks.configs import read_config
    from benchmarks.families import megaselect_family, random_batch
    from benchmarks.step_cases import step
    from megaselect.devices import resolve_dtype
    from megaselect.training.phases import Clock

    config = read_config(config_name).config
    family = megaselect_family(config, [setting], device, resolve_dtype("auto", device))
    family.variants[setting.label]()
    marks = {min(SETTLED_STEP, steps), steps // 2, steps}
    sizes: dict[int, int] = {}
    for number in range(1, steps + 1):
        step(family, random_batch(config, number, device), Clock(device))
        if number in marks:
            sizes[number] = resident_bytes()
    return sizes


def main() -> int:
    """Exit status: 0 steady or not judged, 1 grown, 2 for settings that cannot run."""
    from benchmarks.packages import refuse_without_packages
    from benchmarks.settings import ATTENTIONS, RECOMPUTE, BenchmarkSetting
    from megaselect.errors import MegaselectError

    parser = argparse.ArgumentParser(description="Resident size of a process that trains.")
    parser.add_argument("--config", default="tiny", help="name in configs/ or a YAML file (default tiny)")
    parser.add_argument("--attention", choices=ATTENTIONS, default="unfused")
    parser.add_argument("--recompute", choices=RECOMPUTE, default="selective", help="default selective")
    parser.add_argument("--steps", type=int, default=200, help="default 200")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    setting = BenchmarkSetting(arguments.attention, arguments.recompute)
    try:
        refuse_without_packages()
        from benchmarks.device import describe, environment
        from megaselect.devices import resolve_device

        device = resolve_device(arguments.device)
        sizes = measure(arguments.config, setting, arguments.steps, device)
    except MegaselectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record = environment(device)
    print("\n".join(describe(record)))
    for number, size in sizes.items():
        print(f"step {number:>6}  resident {size / 2**20:8.1f} MiB")
    growth = sizes[arguments.steps] / sizes[arguments.steps // 2] - 1
    settled = arguments.steps // 2 >= SETTLED_STEP
    verdict = f"allowed: {ALLOWED_GROWTH:.0%}" if settled else f"not judged below {2 * SETTLED_STEP} steps"
    print(f"{setting.label}: {growth:+.2%} in the second half ({verdict})")
    if arguments.json:
        report = {**record, "setting": setting.label, "resident_bytes": sizes, "growth": growth}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(settled and growth > ALLOWED_GROWTH)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as in run.py
    sys.exit(main())
