"""Tables of what compile_report.py found, as Markdown."""

import sys

import triton

MOST = ("registers", "stack_bytes", "shared_bytes")
COLUMNS = ("kernel", "program", "form", "dtype", "width", "registers", "stack_bytes", "shared_bytes")
HEADING = """# Registers and memory of the Triton kernels, as compiled

Printed by `python tests/kernels/compile_report.py {arguments}`, Triton {version}, without a GPU. `width` is the length
of a row, of attention kernels the head size; `matrix` and `spills` count instructions. On sm_90 a thread has at most
255 registers and a program 227 KiB of shared memory; what is made for sm_80 stays within 99 KiB, as the smallest GPU
of that generation asks.
"""


def print_markdown(reports):
    """A table for each architecture, a line for each program."""
    print(HEADING.format(arguments=" ".join(sys.argv[1:]), version=triton.__version__))
    for capability in sorted({found["capability"] for found in reports}, reverse=True):
        print(f"## sm_{capability}\n\n| {' | '.join(COLUMNS)} | matrix | spills |\n|{'---|' * (len(COLUMNS) + 2)}")
        for line in sorted({_cells(found) for found in reports if found["capability"] == capability}):
            print(f"| {' | '.join(line)} |")
        print()


def print_summary(reports):
    """A line for each program of each architecture: the most of its dtypes, widths and storage forms."""
    print(HEADING.format(arguments=" ".join(sys.argv[1:]), version=triton.__version__))
    print(
        "Each line sums up a program's dtypes, widths and storage forms: the most registers, stack and shared memory.\n"
    )
    columns = ("target", "kernel", "program", "compiled", *MOST, "with spills")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    groups = {}
    for found in reports:
        groups.setdefault((-found["capability"], found["kernel"], found["program"]), []).append(found)
    for (capability, kernel, program), group in sorted(groups.items()):
        most = [max(found[name] for found in group) for name in MOST]
        spilling = sum(found["counts"]["spill"] > 0 for found in group)
        print(f"| {' | '.join(map(str, (f'sm_{-capability}', kernel, program, len(group), *most, spilling)))} |")


def _cells(found):
    counts = found["counts"]
    cells = (*(found[name] for name in COLUMNS), counts["matrix"] + counts["warpgroup matrix"], counts["spill"])
    return tuple(str(cell).removeprefix("torch.") for cell in cells)
