#!/usr/bin/env bash
# FSDP2 never calls the gradient hooks of a parameter: what they were to zero, scale or record stays as it was.
#
# torch 2.13.0, torch.distributed.fsdp.fully_shard (2.11.0 and 2.15.0 behave alike).
#
# `weight.register_hook(lambda g: g * mask)` is the usual way to train a part of a weight: the rows of new tokens in an
# embedding, the entries that pruning has left. Under fully_shard autograd works on a gathered copy of the weight, and
# FSDP2 puts the reduced gradient on the sharded one itself. So the hook is never called, wherever it was registered,
# before or after: no error, no warning, and the masked part of the weight trains on. Post-accumulate hooks are called
# (on the sharded gradient), and so are hooks of modules.
#
# What to do: mask in register_post_accumulate_grad_hook, where weight.grad is this rank's shard; or mask the optimizer's
# step.
#
# Seen: a hook that zeroes the gradient of a weight; calls, and what is left of the gradient:
#   without FSDP2                 called 1 time   sum of |gradient| 0.0
#   hook, then fully_shard        called 0 times  sum of |gradient| 12.1
#   fully_shard, then hook        called 0 times  sum of |gradient| 12.1
#   post-accumulate hook, FSDP2   called 1 time   sum of |gradient| 0.0
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
from torch.distributed.fsdp import fully_shard

warnings.simplefilter("ignore")


def backward(before=None, sharded=True, after=None):
    """Calls of the hook, and the sum of the weight's gradient. before, after: what registers it, around sharding."""
    torch.manual_seed(0)
    model, calls = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), []
    if before:
        before(model[0].weight, calls)
    if sharded:
        fully_shard(model)
    if after:
        after(model[0].weight, calls)
    model(torch.ones(3, 4)).sum().backward()
    gradient = model[0].weight.grad
    whole = gradient.full_tensor() if sharded else gradient
    return len(calls), round(whole.abs().sum().item(), 1)


def gradient_hook(weight, calls):
    def zero(gradient):
        calls.append(1)
        return torch.zeros_like(gradient)

    weight.register_hook(zero)


def post_accumulate_hook(weight, calls):
    def zero(weight):
        calls.append(1)
        weight.grad.zero_()

    weight.register_post_accumulate_grad_hook(zero)


dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=0, world_size=1)
seen = {
    "without FSDP2": backward(before=gradient_hook, sharded=False),
    "hook, then fully_shard": backward(before=gradient_hook),
    "fully_shard, then hook": backward(after=gradient_hook),
    "post-accumulate hook, FSDP2": backward(after=post_accumulate_hook),
}
dist.destroy_process_group()
for name, (calls, left) in seen.items():
    print(f"{name:<29} called {calls} time{' ' if calls == 1 else 's'}  sum of |gradient| {left}")
ignored = all(calls == 0 and left > 1 for calls, left in list(seen.values())[1:3])
heard = all(seen[name] == (1, 0.0) for name in ("without FSDP2", "post-accumulate hook, FSDP2"))
sys.exit(0 if ignored and heard else "changed: hooks are called")
PYTHON
