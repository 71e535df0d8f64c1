"""What each of two gloo ranks runs for test_parallel.py: every mode, tensor parallel and fully sharded.

A trace is {name: tensor} of losses, whole gradients and trained parameters; one process gives the same names.
"""

from datetime import timedelta

import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, make_batch, make_config
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

RANKS = 2
STEPS = 2
BATCH = 2  # samples a rank
TIMEOUT = timedelta(minutes=10)  # a bound for a hang: other work may have the cores
TENSOR_MODES = ["none", "all", "uniform 1"]
SHARDED_MODES = ["none", "softmax dropout", "all", "uniform 1", "uniform 2"]
ATTENTION = ["unfused", "fused"]
MLP_ONLY = {"mlp.fc1": ColwiseParallel, "mlp.fc2": RowwiseParallel}
# qkv is interleaved per head, so a slice of its rows is whole heads: it may be split by columns.
WHOLE_LAYER = {"attention.qkv": ColwiseParallel, "attention.projection": RowwiseParallel, **MLP_ONLY}
PLANS = {"mlp": MLP_ONLY, "layer": WHOLE_LAYER}


def run_rank(rank, port, folder):
    """Writes {case: trace} to folder/rank.pt. port: that of a store which the parent serves."""
    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (RANKS,))
    found = {}
    for attention in ATTENTION:
        for mode in TENSOR_MODES:
            for plan in PLANS:
                found["tensor", plan, mode, attention, torch.float32] = tensor_parallel(mesh, plan, mode, attention)
        for mode in SHARDED_MODES:
            found["sharded", mode, attention, torch.float32] = sharded(mesh, mode, attention)
        wide = (attention, torch.float64)
        found |= {("tensor", plan, "none", *wide): tensor_parallel(mesh, plan, "none", *wide) for plan in PLANS}
        found["sharded", "none", *wide] = sharded(mesh, "none", *wide)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def build(mode, attention, dtype):
    config = make_config(SETTINGS[mode], attention=attention, num_layers=2)
    return build_unchecked(config).to(dtype), config


def one_process(mode, attention, dtype, batch):
    """The trace of a single process on `batch` samples a step."""
    model, config = build(mode, attention, dtype)
    return train(model, lambda step: make_batch(config, step * batch, batch))


def tensor_parallel(mesh, plan, mode, attention, dtype=torch.float32):
    """The trace of linear layers split over the ranks; every rank has the whole batch."""
    model, config = build(mode, attention, dtype)
    for block in model.layers:
        parallelize_module(block, mesh, {name: style() for name, style in PLANS[plan].items()})
        if plan == "layer":  # a rank's first head, which the masks are a function of
            core, heads = block.attention.core, config.model.num_attention_heads // RANKS
            core.plane = core.plane._replace(site=core.plane.site + mesh.get_local_rank() * heads)
    return train(model, lambda step: make_batch(config, step * BATCH, BATCH))


def sharded(mesh, mode, attention, dtype=torch.float32):
    """The trace of FSDP2, block by block; every rank has its own samples. Losses are the mean over ranks."""
    model, config = build(mode, attention, dtype)
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    first = mesh.get_local_rank() * BATCH
    trace = train(model, lambda step: make_batch(config, step * BATCH * RANKS + first, BATCH))
    for name, value in trace.items():
        if name.endswith("loss"):
            distributed.all_reduce(value)
            trace[name] = value / RANKS
    return trace


def train(model, batch_of_step):
    """SGD with momentum: unlike Adam's, its step is proportional to the gradient, and so is its error."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trace = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(*batch_of_step(step))
        loss.backward()
        trace[f"{step} loss"] = loss.detach().clone()
        trace |= {f"{step} gradient of {name}": whole(value.grad) for name, value in model.named_parameters()}
        optimizer.step()
    return trace | {f"trained {name}": whole(value) for name, value in model.named_parameters()}


def whole(tensor):
    """A copy, put together from all ranks."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
