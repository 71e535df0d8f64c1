#!/usr/bin/env bash
# A zero-bubble pipeline schedule runs every checkpointed region three times in backward, not once.
#
# torch 2.13.0, torch.distributed.pipelining (2.14.1 and 2.15.0 give the same numbers).
#
# Zero-bubble schedules split a stage's backward into two parts, for the inputs and for the weights, so that the second
# can fill a gap. A non-reentrant checkpoint forgets what it rebuilt when a backward call ends and rebuilds it for the
# next, and the schedule makes three calls of autograd for a micro-batch, not two: a checkpointed stage (all but the
# first, whose backward is not split) computes its forward pass four times a micro-batch in all. Activation
# recomputation then costs three forward passes in place of one, which is more than the bubble it was to fill. Losses
# and gradients are those of the other schedules and nothing warns, so it shows only in step time.
#
# What to do: with checkpointing use 1F1B or interleaved 1F1B, or count how often a region runs before choosing.
#
# Seen: runs of the checkpointed body of a stage in backward, a micro-batch (two stages of two blocks, 4 micro-batches):
#   ScheduleInterleaved1F1B        stage 0: 1   stage 1: 1
#   ScheduleInterleavedZeroBubble  stage 0: 1   stage 1: 3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

STORE="$work/store" "$work/env/bin/python" - <<'PYTHON'
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")
MICRO_BATCHES = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.runs = 0

    def body(self, x):
        self.runs += 1
        return x + self.down(torch.tanh(self.up(x)))

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


def step(schedule):
    torch.manual_seed(0)
    modules = [nn.Sequential(Block(), Block()) for _ in range(2)]
    stages = [PipelineStage(module, i, 2, torch.device("cpu")) for i, module in enumerate(modules)]
    pipeline = schedule(stages, MICRO_BATCHES, loss_fn=nn.functional.mse_loss)
    blocks = [block for module in modules for block in module]
    x, y = torch.randn(8, 32), torch.randn(8, 32)
    pipeline.step(x, target=y, losses=[])  # the first step infers shapes, too, with runs of its own
    for block in blocks:
        block.runs = 0
    pipeline.step(x, target=y, losses=[])
    again = [{block.runs / MICRO_BATCHES - 1 for block in module} for module in modules]
    return again, [p.grad for block in blocks for p in block.parameters()]


dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=0, world_size=1)
results = {schedule.__name__: step(schedule) for schedule in (ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble)}
dist.destroy_process_group()
for name, (runs, _) in results.items():
    stages = (f"stage {i}: {', '.join(f'{n:g}' for n in sorted(again))}" for i, again in enumerate(runs))
    print(f"{name:<31}" + "   ".join(stages))
(plain, right), (split, seen) = results.values()
if not all(torch.allclose(a, b) for a, b in zip(right, seen, strict=True)):
    sys.exit("changed: the schedules' gradients differ")
sys.exit(0 if plain == [{1.0}, {1.0}] and split == [{1.0}, {3.0}] else "changed: other numbers of recomputations")
PYTHON
