"""What a rank sends in a step, for test_bytes_sent.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import trials

from megaselect.distributed.launch import joined_ranks

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.traffic import counted


def in_a_step(parallel, micro_batches):
    """Function -> bytes, of a step of so many micro-batches on all ranks together; shapes of the blocks' weights, and
    of the others.
    """
    batch = micro_batches * trials.TRAINING["micro_batch_size"]
    config = trials.make_config(parallel=parallel, training={"global_batch_size": batch})
    with joined_ranks(60) as ranks:
        trial = trials.Trial(config, ranks)
        trial.train(1)
        with counted() as sent:
            trial.train(1)
        in_blocks = {parameter for block in trial.model.blocks for parameter in block.parameters()}
        shapes = {True: [], False: []}
        for parameter in trial.model.parameters():
            shapes[parameter in in_blocks].append(tuple(parameter.shape))
        return dict(sent), (shapes[True], shapes[False])


def by_each_function(elements):
    """Function -> bytes, of one call each with fp32 tensors of so many elements a rank; by the names in torch 2.11."""
    with joined_ranks(60) as ranks:
        part, whole = torch.zeros(elements), torch.zeros(ranks.size * elements)
        calls = {
            "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
            "all_to_all": lambda: dist.all_to_all_single(whole.clone(), whole),
            "all_reduce": lambda: dist.all_reduce(part),
        }
        found = {}
        for name, call in calls.items():
            with counted() as sent:
                call()
            found[name] = sum(sent.values())
        return found


def by_what_has_no_rule():
    """What a broadcast raises while bytes are counted."""
    with joined_ranks(60), counted():
        try:
            dist.broadcast(torch.zeros(1), 0)
        except NotImplementedError as error:
            return str(error)
