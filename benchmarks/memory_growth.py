"""Does the process grow while it trains? `python benchmarks/memory_growth.py`

Resident size at step 20, halfway and at the end; exit 1 where the second half adds more than 2 %. Below 40 steps the
allocator has not settled by halfway, and the growth is shown but not judged.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from common import MODES, MegaselectStep, describe, environment, random_batch, read_config, write_json

from megaselect.devices import resolve_device
from megaselect.errors import MegaselectError

SETTLED_STEP = 20
ALLOWED_GROWTH = 0.02


def resident_bytes() -> int:
    """The process's resident size now, by Linux's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(config_name: str, mode: str, steps: int, device: torch.device) -> dict[int, int]:
    """Step -> resident bytes after it, at step 20, steps/2 and steps."""
    config = read_config(config_name, {"training.device": device.type, **MODES[mode]})
    step = MegaselectStep(config)
    marks = {min(SETTLED_STEP, steps), steps // 2, steps}
    sizes: dict[int, int] = {}
    for number in range(1, steps + 1):
        step(random_batch(config, number, device))
        if number in marks:
            sizes[number] = resident_bytes()
    return sizes


def main() -> int:
    """Exit status: 0 steady or not judged, 1 grown, 2 for settings that cannot run."""
    parser = argparse.ArgumentParser(description="Resident size of a process that trains.")
    parser.add_argument("--config", default="tiny", help="name in configs/ or a YAML file (default tiny)")
    parser.add_argument("--mode", choices=MODES, default="selective", help="default selective")
    parser.add_argument("--steps", type=int, default=200, help="default 200")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    try:
        device = resolve_device(arguments.device)
        sizes = measure(arguments.config, arguments.mode, arguments.steps, device)
    except MegaselectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record = environment(device)
    print(describe(record))
    for step, size in sizes.items():
        print(f"step {step:>6}  resident {size / 2**20:8.1f} MiB")
    half, end = sizes[arguments.steps // 2], sizes[arguments.steps]
    growth = end / half - 1
    settled = arguments.steps // 2 >= SETTLED_STEP
    grown = settled and growth > ALLOWED_GROWTH
    verdict = f"allowed: {ALLOWED_GROWTH:.0%}" if settled else f"not judged below {2 * SETTLED_STEP} steps"
    print(f"{arguments.mode}: {growth:+.2%} in the second half ({verdict})")
    write_json(arguments.json, {**record, "mode": arguments.mode, "resident_bytes": sizes, "growth": growth})
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
