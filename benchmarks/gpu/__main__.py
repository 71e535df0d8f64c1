"""`python -m benchmarks.gpu`: bits, `pytest -m cuda` and the headline benchmarks on one GPU, in under nine minutes.

report.md and report.json come to $OUT, else to build/gpu/, and stand there after every part. With --dry nothing needs a
GPU: the same processes run, the kernels are compiled for sm_90, the tests are collected and skip themselves, the
cases run in a small form on the CPU, and the report says `not measured`.

Exit status: 0 where the bits of all settings were equal, 1 where they differ, 2 where packages are missing, 3 where
equality was not shown. With --dry: 0 where all of it went well, else 1.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks.gpu.carried import install
from benchmarks.gpu.child import ROOT, stop_all
from benchmarks.gpu.parts import Clock, run_parts
from benchmarks.packages import MissingPackagesError, refuse_without_packages

SECONDS, DRY_SECONDS = 530.0, 3600.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="rehearse it without a GPU")
    parser.add_argument("--seconds", type=float, help=f"of the whole run (default {SECONDS:.0f})")
    return parser.parse_args(arguments)


def main() -> int:
    """As the module says."""
    arguments = parse()
    out = Path(os.environ.get("OUT") or ROOT / "build" / ("gpu-dry" if arguments.dry else "gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(arguments.seconds or (DRY_SECONDS if arguments.dry else SECONDS))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory() as folder:
        said = install(Path(folder) / "packages")  # before anything that needs one of them
        try:
            refuse_without_packages()
        except MissingPackagesError as error:
            print(f"error: {error} ({said})", file=sys.stderr)
            return 2
        from benchmarks.gpu.run import Run

        run = Run(out, Path(folder), arguments.dry, "make gpu DRY=1" if arguments.dry else "make gpu", said)
        try:
            run_parts(run.parts, clock, run.write_report)
        except KeyboardInterrupt:
            print("interrupted: the report has what was found", file=sys.stderr)
        finally:
            run.close()
            run.write_report()
    print((out / "report.md").read_text())
    print(f"{shlex.quote(str(out / 'report.md'))}: bits: {run.findings().bits()[1]}")
    return run.status()


def _interrupt(_: int, __: FrameType | None) -> None:
    stop_all()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
