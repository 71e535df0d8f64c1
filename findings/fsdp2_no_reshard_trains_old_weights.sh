#!/usr/bin/env bash
# FSDP2 with set_reshard_after_backward(False) goes on computing with the weights from before the optimizer's step.
#
# torch 2.13.0, torch.distributed.fsdp.fully_shard, gloo, two processes on a CPU (2.15.0 gives the same losses).
#
# The setting keeps the gathered weights after backward, which saves the next forward pass an all-gather; its
# documentation speaks of gradient accumulation. The optimizer steps on the shards. Nothing marks the gathered copies as
# outdated, and forward takes them as long as they are there. So with a step after each backward pass, where memory
# would allow it and communication is to be saved:
#   - what the root holds itself (here embedding and head) computes with the initial weights for ever;
#   - a layer computes forward with weights that are a step late, and, as it gathers them anew for backward, its
#     gradients, or its recomputation under checkpointing, use other weights than its forward pass did.
# The loss falls all the same, only more slowly, and saved checkpoints hold weights that no forward pass has seen.
#
# What to do: set it to True before the last micro-batch's backward pass, or call reshard() on every FSDP module after
# optimizer.step().
#
# Seen, SGD, one step a batch, losses of five steps:
#   one process, no FSDP                4.1515 3.6524 3.2659 2.9192 2.5860
#   FSDP2                               4.1515 3.6524 3.2659 2.9192 2.5860
#   FSDP2, no reshard after backward    4.1515 4.1515 3.9968 3.8581 3.7375
#   the head that computed the last loss is the initial one: True; the shards are: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat >"$work/finding.py" <<'PYTHON'
import copy
import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

warnings.simplefilter("ignore")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(2))

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def shard(model, reshard):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.set_reshard_after_backward(reshard)
    return model


def train(model, tokens):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        loss = cross_entropy(model(tokens).flatten(0, 1), tokens.flatten().roll(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


def process(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    tokens, model = torch.randint(0, 50, (4, 8)), Model()
    head = model.head.weight.detach().clone()
    whole = train(copy.deepcopy(model), tokens)
    usual = train(shard(copy.deepcopy(model), True), tokens)
    kept = shard(copy.deepcopy(model), False)
    late = train(kept, tokens)
    computed_with = torch.equal(kept.head.weight, head)
    kept.reshard()
    shards = torch.equal(kept.head.weight.full_tensor(), head)
    dist.destroy_process_group()
    if rank == 0:
        names = ("one process, no FSDP", "FSDP2", "FSDP2, no reshard after backward")
        for name, losses in zip(names, (whole, usual, late), strict=True):
            print(f"{name:<36}" + " ".join(f"{loss:.4f}" for loss in losses.tolist()))
        print(f"the head that computed the last loss is the initial one: {computed_with}; the shards are: {shards}")
    same = torch.allclose(whole, usual, atol=1e-5)
    if not (same and late[0] == late[1] and computed_with and not shards):
        sys.exit("changed: the optimizer's weights are computed with")


if __name__ == "__main__":
    mp.spawn(process, args=(sys.argv[1],), nprocs=2)
PYTHON
"$work/env/bin/python" "$work/finding.py" "$work/store"
