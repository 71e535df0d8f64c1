"""Trainings by setting, and what differs between those of ranks and of one process."""

import functools

import torch
import trials

SETTINGS = {
    "none": {"mode": "none"},
    "selective": {"mode": "selective"},
    "all": {"mode": "selective", "modules": ["all"]},
    "full": {"mode": "full"},
    "full sqrt": {"mode": "full", "method": "sqrt"},
}
SHARDINGS = {
    "parameters": {"sharding": "parameters"},
    "gradients": {"sharding": "gradients"},
    "none": {"sharding": "none"},
}


@functools.cache
def alone(setting="none", dtype="fp32", attention="unfused"):
    """One process's training."""
    return trials.alone(config_of(setting, dtype, attention))


def config_of(setting="none", dtype="fp32", attention="unfused", **training):
    return {
        "recompute": SETTINGS[setting],
        "training": {"dtype": dtype, **training},
        "model": {"attention": attention},
    }


def joined(results):
    """Name -> the whole tensor, from what each rank holds; what several hold must be alike."""
    found = {}
    for _, pieces, *_ in results:
        for name, (rows, tensor) in pieces.items():
            place = rows[0] if rows else 0
            other = found.setdefault(name, {}).setdefault(place, tensor)
            assert torch.equal(other, tensor), (name, place)
    return {
        name: torch.cat([parts[place] for place in sorted(parts)]) if len(parts) > 1 else parts[0]
        for name, parts in found.items()
    }


def rounded(tensors, dtype):
    """As a checkpoint holds them: weights in the dtype that the model computes in."""
    names = [name for name in tensors if not name.startswith(("exp_avg", "step.", "master."))]
    return tensors | {name: tensors[name].to(dtype) for name in names}


def differences(results, expected, dtype=torch.float32):
    """Names of what differs between ranks' results and one process's."""
    log, _, saved, loss = expected
    found = []
    for own_log, _, own_saved, own_loss in results:
        pairs = {"losses and norms": (own_log, log), "saved bytes": (own_saved, saved), "valid loss": (own_loss, loss)}
        found += [name for name, (ours, theirs) in pairs.items() if ours != theirs]
    ours, theirs = rounded(joined(results), dtype), rounded(joined([expected]), dtype)
    found += sorted(ours.keys() ^ theirs.keys())
    return found + [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
