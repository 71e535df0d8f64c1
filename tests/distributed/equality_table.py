"""The table in docs/scale.md: which layouts of ranks train to the bits of one process. Run it from the root.

    python tests/distributed/equality_table.py

It trains each line's layout in every recompute setting and writes the table between its two marks in docs/scale.md.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import trials
from rank_pool import RankPool
from same_bits import SETTINGS, alone, config_of, differences

DOC = Path(__file__).parents[2] / "docs" / "scale.md"
BEGIN, END = "<!-- table: begins -->", "<!-- table: ends -->"
LAYOUTS = [
    *((ranks, {"sharding": sharding}) for sharding in ("parameters", "gradients", "none") for ranks in (2, 3, 4)),
    *((4, {"sharding": sharding, "replicas": 2}) for sharding in ("parameters", "gradients")),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cell(pool, ranks, parallel, setting):
    """`equal`, or what is not."""
    found = []
    for dtype, rounded_to in DTYPES.items():
        settings = config_of(setting, dtype)
        results = pool.run(ranks, "trials", "training", config_of={**settings, "parallel": parallel})
        found += [f"{dtype}: {name}" for name in differences(results, alone(setting, dtype), rounded_to)]
    return "equal" if not found else "; ".join(found[:3])


def table():
    """Lines of Markdown, and whether all is equal."""
    lines = [f"| ranks | sharding | groups | {' | '.join(SETTINGS)} |", "|---|---|---|" + "---|" * len(SETTINGS)]
    all_equal = True
    with RankPool() as pool:
        for ranks, parallel in LAYOUTS:
            cells = [cell(pool, ranks, parallel, setting) for setting in SETTINGS]
            all_equal &= set(cells) == {"equal"}
            lines.append(f"| {ranks} | {parallel['sharding']} | {parallel.get('replicas', 1)} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    made = f"torch {torch.__version__}, {trials.STEPS} steps each, in {' and '.join(DTYPES)}"
    return [*lines, "", f"Made by `python tests/distributed/equality_table.py`: {made}."], all_equal


def main():
    """Write the table; exit code 1 where anything differs."""
    lines, all_equal = table()
    text = DOC.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOC.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")
    return 0 if all_equal else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
