"""One runner for all figures: `python benchmarks/run.py headline|kernels|step|sweep|baselines|scale|any-model`.

Needs torch, triton, NumPy, PyYAML and pydantic. Every figure is a median with its 20 % and 80 % quantiles; what is
compared takes turns in one run. With --out, finished cases are remembered beside the file, and a second start skips
them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    """Exit status: 0; 1 where bits, bytes or kernels are wrong; 2 for settings that cannot run; 3 where the GPU failed
    and the same command goes on without what made it fail."""
    from benchmarks.arguments import parse
    from benchmarks.packages import refuse_without_packages
    from megaselect.errors import MegaselectError

    arguments = parse()
    try:
        refuse_without_packages()
        from benchmarks.session import run_part  # needs them

        report, status = run_part(arguments)
        if report is None:
            return 0
        print(json.dumps(report.document()) if arguments.json else report.text())
        if arguments.out:
            report.write(arguments.out)
    except (MegaselectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    # The root in place of this folder: the package `benchmarks` is then importable, and its modules shadow nobody's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
