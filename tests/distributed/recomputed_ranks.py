"""What each gloo rank runs for test_any_model.py: a model, replicated or sharded, with and without a plan."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "recomputation"))
from steps_compared import Language, cross_entropy, differing, tokens

from megaselect import recompute

SHARDED = {
    "layers": lambda model: model.layers,
    "linear layers": lambda model: [part for part in model.modules() if isinstance(part, nn.Linear)],
    "every part": lambda model: [
        part for part in model.modules() if isinstance(part, nn.Linear | nn.LayerNorm | nn.Embedding)
    ],
    "the root": lambda model: [],
}


def differences(kind, setting, plan_first=True, bfloat16=False, reshard=True):
    """(numbers of tensors that differ from steps without recompute, departed passes, bytes).

    kind: "replicated", or which parts are sharded by themselves. plan_first: before the model is sharded.
    """
    distributed.init_process_group("gloo")
    try:
        options = {"plan_first": plan_first, "bfloat16": bfloat16, "reshard": reshard}
        expected, _ = _steps(kind, None, **options)
        found, plan = _steps(kind, setting, **options)
    finally:
        distributed.destroy_process_group()
    return differing(expected, found), plan.departed, plan.bytes


def _steps(kind, setting, plan_first, bfloat16, reshard):
    torch.manual_seed(0)
    model = Language()
    plan = recompute(model, setting) if setting and plan_first else None
    trained = model
    if kind == "replicated":
        trained = DistributedDataParallel(model)
    else:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()
        for part in [*SHARDED[kind](model), model]:
            fully_shard(part, mp_policy=policy, reshard_after_forward=reshard)
    if setting and not plan_first:
        plan = recompute(model, setting)
    return _trace(model, trained), plan


def _trace(model, trained):
    rank = distributed.get_rank()
    torch.manual_seed(5 + rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trace = []
    for step in range(3):
        optimizer.zero_grad()
        losses = [cross_entropy(trained, tokens(10 * step + 2 * part + rank)) for part in range(2)]
        sum(losses).backward()
        trace += [loss.detach() for loss in losses]
        trace += [
            part.grad.full_tensor() if isinstance(part.grad, DTensor) else part.grad.clone()
            for part in model.parameters()
        ]
        optimizer.step()
    return trace
