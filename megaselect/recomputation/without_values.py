"""Runs of a model on tensors that have shapes and no values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from megaselect.errors import MegaselectError, RecomputeError, as_line


@contextlib.contextmanager
def without_values(model: nn.Module, remedy: str) -> Iterator[None]:
    """Raises RecomputeError for whatever is raised inside and is no error of ours, with what to do instead."""
    recurrent = next((type(part).__name__ for part in model.modules() if isinstance(part, nn.RNNBase)), None)
    if recurrent is not None:  # torch takes operators apart there that it has in one with values
        raise RecomputeError(f"{type(model).__name__} runs otherwise without values, in its {recurrent}: {remedy}")
    try:
        yield
    except MegaselectError:
        raise
    except Exception as error:
        raise RecomputeError(
            f"{type(model).__name__} does not run without values ({as_line(error)}): {remedy}"
        ) from error
