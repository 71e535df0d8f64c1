"""Runs the whole corpus of tests/verify/corpus and shows what megaselect.verify says of it.

    python tests/verify/survey.py              # a line for each case; exit code 1 where one is not as it should be
    python tests/verify/survey.py --markdown   # writes docs/verify-coverage.md too
    python tests/verify/survey.py --guide      # puts the sentences of this run into docs/silent-errors.md

What needs a package that is not installed is shown as left out. Nothing is taken from the network.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers reads it when it is imported
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import torch  # noqa: E402
from corpus import coverage, guide  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="What megaselect.verify says of the corpus.")
    parser.add_argument("--markdown", action="store_true", help="write docs/verify-coverage.md")
    parser.add_argument("--guide", action="store_true", help="put this run's sentences into docs/silent-errors.md")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.guide:
        guide.write(ROOT / "docs/silent-errors.md")
        return 0
    start, found = time.perf_counter(), []
    for row in coverage.rows():
        found.append(row)
        print(f"{'ok ' if row.good else 'BAD'} {row.table:13} {row.name} {row.column}: {row.says}", flush=True)
    bad = sum(not row.good for row in found)
    print(f"{len(found)} cases, {bad} not as they should be, {time.perf_counter() - start:.0f} s")
    if chosen.markdown:
        (ROOT / "docs/verify-coverage.md").write_text(coverage.markdown(found), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
