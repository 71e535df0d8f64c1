#!/usr/bin/env bash
# Groups made after init_process_group(timeout=...) do not have its time-out: they wait for half an hour.
#
# torch 2.13.0, torch.distributed on gloo (2.11.0 to 2.15.0 behave alike).
#
# A short time-out for the default group is how people have a job end soon after one rank is stuck or gone astray. It
# holds for collectives of the default group alone. `new_group` without a time-out of its own, and the groups that
# `init_device_mesh` makes for a mesh of several dimensions, get torch's constant of 30 minutes. FSDP, HSDP, tensor and
# pipeline parallel send nearly everything over such groups, so a rank that never comes holds up all others, and the
# GPUs that they run on, for 30 minutes whatever was asked for, and nothing says so.
#
# What to do: new_group(..., timeout=...) for each group, and DeviceMesh.from_group of those in place of
# init_device_mesh.
#
# Seen: a rank comes 10 s late to an all-reduce, the default group's time-out is 5 s:
#   default group               rank 0 gave up after 5 s
#   new_group                   rank 0 waited for 10 s
#   new_group(timeout=5 s)      rank 0 gave up after 5 s
#   dimension of a 2 x 2 mesh   rank 0 waited for 10 s
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$work/ranks.py" <<'PYTHON'
import os
import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

SHORT, LATE = timedelta(seconds=5), 10
PAIRS = [[0, 1], [2, 3]]


def own(rank, **options):
    """This rank's of two groups of two."""
    return [dist.new_group(pair, **options) for pair in PAIRS][rank // 2]


GROUPS = {
    "default group": lambda rank: None,
    "new_group": own,
    "new_group(timeout=5 s)": lambda rank: own(rank, timeout=SHORT),
    "dimension of a 2 x 2 mesh": lambda rank: init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))["b"].get_group(),
}


def run(rank, name, store, results):
    warnings.simplefilter("ignore")
    # The ranks meet first, however long their imports take; then the time-out is short.
    meeting = dist.FileStore(store, 4)
    meeting.add("here", 1)
    while meeting.add("here", 0) < 4:
        time.sleep(0.1)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=4, timeout=SHORT)
    group, x = GROUPS[name](rank), torch.ones(1)
    dist.all_reduce(x, group=group)
    if rank in (1, 3):
        time.sleep(LATE)
    began = time.monotonic()
    try:
        dist.all_reduce(x, group=group)
        end = "waited for"
    except RuntimeError:
        end = "gave up after"
    if rank == 0:
        results.put((end, round(time.monotonic() - began)))
    os._exit(0)


if __name__ == "__main__":
    seen = {}
    for number, name in enumerate(GROUPS):
        results = mp.get_context("spawn").SimpleQueue()
        mp.spawn(run, args=(name, os.path.join(sys.argv[1], f"store-{number}"), results), nprocs=4)
        seen[name] = results.get()
        print(f"{name:<27} rank 0 {seen[name][0]} {seen[name][1]} s", flush=True)
    ends = [end for end, _ in seen.values()]
    wanted = ["gave up after", "waited for", "gave up after", "waited for"]
    sys.exit(0 if ends == wanted else "changed: other groups give up in time")
PYTHON
"$work/env/bin/python" "$work/ranks.py" "$work" 2> >(grep -v "Gloo\|^\[W" >&2)
