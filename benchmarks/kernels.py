"""Memory bandwidth of the softmax-and-dropout kernels as a share of a device copy's, beside torch's eager chain.

    python benchmarks/kernels.py

bf16, causal, nothing stored but scores (selective's path). Bytes are counted per element of the s*s scores, the dead
half of which is written as zeros and never read: forward 3 (reads half of 2, writes 2), backward 6 (reads half of
scores and half of the gradient, writes gradient and dropped probs). The row statistics are left out. The copy is of a
tensor of the scores' size and counts 4 bytes an element. Copy, kernels and torch take turns within a run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import describe, environment, table, write_json
from torch import Tensor
from torch.nn import functional

from megaselect.kernels.dropout_mask import Plane, drop_threshold

SEQUENCES = (1024, 2048, 4096, 8192, 16384)
DROPOUTS = (0.0, 0.1)
ELEMENTS = 1 << 28  # of the scores, at every s: 512 MiB, far beyond any cache
COPY_BYTES, FORWARD_BYTES, BACKWARD_BYTES = 4, 3, 6
SEED, HEAD_SIZE = 1234, 64


def main() -> int:
    """Exit status: 0, or 2 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, nargs="+", default=SEQUENCES, help="default 1024 to 16384")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken (default 3)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs a CUDA device", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    record = environment(device)
    print(f"{describe(record)}\n")
    rows = []
    for sequence in arguments.sequences:
        for dropout_p in DROPOUTS:
            milliseconds = measure(sequence, dropout_p, arguments.rounds, device)
            rows.append(_figures(sequence, dropout_p, milliseconds))
    print(_table(rows))
    write_json(arguments.json, {**record, "elements": ELEMENTS, "dtype": "torch.bfloat16", "figures": rows})
    return 0


def measure(sequence: int, dropout_p: float, rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds by name, medians over rounds of do_bench's medians."""
    from triton.testing import do_bench  # triton has no wheel for every system, and --help should work there too

    heads = max(ELEMENTS // sequence**2, 1)
    generator = torch.Generator(device).manual_seed(SEED)
    scores = torch.randn(1, heads, sequence, sequence, device=device, dtype=torch.bfloat16, generator=generator)
    gradient = torch.randn(scores.shape, device=device, dtype=torch.bfloat16, generator=generator)
    target = torch.empty_like(scores)
    runs: dict[str, Callable[[], Any]] = {
        "copy": lambda: target.copy_(scores),
        **_kernel_runs(scores, gradient.clone(), dropout_p),
        **_torch_runs(scores, gradient, dropout_p),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(do_bench(run, return_mode="median"))
    return {name: statistics.median(values) for name, values in taken.items()}


def _kernel_runs(scores: Tensor, gradient: Tensor, dropout_p: float) -> dict[str, Callable[[], Any]]:
    """Forward and backward as selective runs them; backward overwrites `gradient`, as it does in training."""
    from megaselect.kernels import softmax_dropout_triton as kernels

    plane = Plane(SEED, 0, drop_threshold(dropout_p))
    sample_index = torch.zeros(1, dtype=torch.int64, device=scores.device)
    _, row_max, inverse_sum, probs, mask = kernels.forward(scores, sample_index, plane, False, False)
    delta = torch.randn_like(row_max)  # not 0: the gradient, overwritten again and again, would fade to zeros

    def forward() -> None:
        kernels.forward(scores, sample_index, plane, False, False)

    def backward() -> None:
        kernels.backward(
            gradient,
            delta,
            sample_index,
            plane,
            scores=scores,
            row_max=row_max,
            inverse_sum=inverse_sum,
            probs=probs,
            mask=mask,
            write_dropped=True,
        )

    return {"forward": forward, "backward": backward}


def _torch_runs(scores: Tensor, gradient: Tensor, dropout_p: float) -> dict[str, Callable[[], Any]]:
    """Scale, mask, softmax and dropout, one torch operation each."""
    sequence = scores.shape[-1]
    leaf = scores.detach().requires_grad_()
    future = torch.ones(sequence, sequence, dtype=torch.bool, device=scores.device).triu_(1)

    def chain() -> Tensor:
        probs = functional.softmax((leaf * HEAD_SIZE**-0.5).masked_fill(future, float("-inf")), dim=-1)
        return functional.dropout(probs, dropout_p) if dropout_p else probs

    out = chain()
    return {
        "torch forward": chain,
        "torch backward": lambda: torch.autograd.grad(out, leaf, gradient, retain_graph=True),
    }


def _figures(sequence: int, dropout_p: float, milliseconds: dict[str, float]) -> dict[str, Any]:
    elements = max(ELEMENTS // sequence**2, 1) * sequence**2
    copy = elements * COPY_BYTES / milliseconds["copy"]  # bytes a millisecond
    both = milliseconds["forward"] + milliseconds["backward"]
    return {
        "sequence": sequence,
        "dropout_p": dropout_p,
        "milliseconds": milliseconds,
        "copy_gb_per_s": copy / 1e6,
        "forward_of_copy": elements * FORWARD_BYTES / milliseconds["forward"] / copy,
        "backward_of_copy": elements * BACKWARD_BYTES / milliseconds["backward"] / copy,
        "times_torch_forward": milliseconds["torch forward"] / milliseconds["forward"],
        "times_torch_backward": milliseconds["torch backward"] / milliseconds["backward"],
        "times_torch": (milliseconds["torch forward"] + milliseconds["torch backward"]) / both,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["s", "dropout", "copy GB/s", "fwd ms", "of copy", "x torch", "bwd ms", "of copy", "x torch", "both"]
    lines = [
        [
            str(row["sequence"]),
            f"{row['dropout_p']:g}",
            f"{row['copy_gb_per_s']:.0f}",
            f"{row['milliseconds']['forward']:.3f}",
            f"{row['forward_of_copy']:.1%}",
            f"{row['times_torch_forward']:.2f}",
            f"{row['milliseconds']['backward']:.3f}",
            f"{row['backward_of_copy']:.1%}",
            f"{row['times_torch_backward']:.2f}",
            f"{row['times_torch']:.2f}",
        ]
        for row in rows
    ]
    return table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
