"""Whether all ranks are about to train the same thing: the same settings, data and versions."""

from __future__ import annotations

import json
import platform

import torch

import megaselect
from megaselect.config import Config
from megaselect.distributed.ranks import Ranks
from megaselect.errors import RankError
from megaselect.kernels.backend import numba_version


def check_alike(ranks: Ranks, config: Config, fingerprint: str) -> None:
    """Raises RankError, on every rank, for the first that differs from rank 0. fingerprint: of the training data."""
    settings = {
        f"{section}.{name}": value for section, values in config.to_dict().items() for name, value in values.items()
    }
    versions = {"megaselect": megaselect.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    versions["numba"] = numba_version() or "none"  # without it, or with another, CPU kernels may give other bits
    own = {**versions, "the data's fingerprint": fingerprint, **settings}
    first, *others = ranks.gather_values(json.dumps(own))
    for rank, other in enumerate(others, 1):
        if other != first:
            name, here, there = _difference(json.loads(first), json.loads(other))
            raise RankError(
                f"rank {rank} has {name} {there} and rank 0 has {here}: start all ranks by the same command, in the "
                "same environment and on the same files"
            )


def _difference(first: dict[str, object], other: dict[str, object]) -> tuple[str, object, object]:
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    return names[0], first.get(names[0]), other.get(names[0])
