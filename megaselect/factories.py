"""Models of anybody's by a name: a function that makes one, or a directory with a config of transformers."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megaselect.errors import ModelError, as_line

DEFAULT_SEQ_LENGTH = 2048  # where the model's config allows as many positions
FORMS = "give package.module:function, or a directory with a config.json of transformers"
_CONFIG = "config.json"


@dataclass(frozen=True)
class Made:
    """What a factory made. batch: a tensor, a tuple of arguments or a mapping of keyword arguments; None: none."""

    model: nn.Module
    batch: Any = None


Factory = Callable[[], Made]


def find_factory(name: str) -> Factory:
    """What makes the model of that name. `package.module:function` is looked for in the current directory too.

    The function takes no arguments, and returns an nn.Module, or (nn.Module, batch). A directory's model has random
    weights, trains, and keeps no cache of keys and values. Raises ModelError, and so does the factory, where there is
    no such thing or it fails.
    """
    if Path(name).is_dir():
        return _of_directory(Path(name))
    if ":" not in name:
        if name.endswith(_CONFIG) or os.sep in name:
            raise ModelError(f"--model {name}: no such directory; {FORMS}")
        raise ModelError(f"--model {name}: names no function; {FORMS}")
    module, _, function = name.partition(":")
    return _calling(name, _function(name, _imported(name, module), function))


def _imported(name: str, module: str) -> Any:
    if "" not in sys.path and os.getcwd() not in sys.path:  # an installed command's path is without it
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ModelError(f"--model {name}: there is no module {missing}; {FORMS}") from error
        raise ModelError(f"--model {name}: importing {module} raises {as_line(error)}") from error


def _function(name: str, module: Any, function: str) -> Callable[[], Any]:
    found = getattr(module, function, None)
    if callable(found):
        return found
    what = "is no function" if hasattr(module, function) else "is not there"
    near = difflib.get_close_matches(function, [own for own in vars(module) if callable(vars(module)[own])], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ModelError(f"--model {name}: {function or 'the function'} {what} in {module.__name__}{hint}")


def _calling(name: str, function: Callable[[], Any]) -> Factory:
    def make() -> Made:
        try:
            made = function()
        except (Exception, SystemExit) as error:
            raise ModelError(f"--model {name}: it raises {as_line(error)}") from error
        model, batch = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"--model {name}: it returns a {type(model).__name__}: return an nn.Module, or (nn.Module, batch)"
            )
        return Made(model, batch)

    return make


def _of_directory(directory: Path) -> Factory:
    if not (directory / _CONFIG).is_file():
        raise ModelError(f"--model {directory}: has no {_CONFIG}, by which transformers makes a model")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ModelError(
            f"--model {directory}: a {_CONFIG} needs the package transformers: pip install transformers"
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"--model {directory}: transformers cannot read {_CONFIG}: {as_line(error)}") from error
    config.use_cache = False  # a step would keep keys and values for the next token, which no training has
    architecture = next(iter(config.architectures or []), None)
    made_by = getattr(transformers, architecture, None) if architecture else None
    if made_by is None:
        said = f"architectures is {config.architectures}: name a class of transformers {transformers.__version__} there"
        raise ModelError(f"--model {directory}: in its {_CONFIG}, {said}")
    return _calling(str(directory), lambda: made_by(config).train())


def batch_for(name: str, made: Made, batch_size: int | None, seq_length: int | None) -> Any:
    """The factory's batch; of a model that has none and whose config has a vocabulary, random tokens and labels.

    int64, [batch_size (1), seq_length (as many as the config allows, DEFAULT_SEQ_LENGTH at most)]. Raises ModelError.
    """
    if made.batch is not None:
        if batch_size is not None or seq_length is not None:
            flag = "--batch-size" if batch_size is not None else "--seq-length"
            raise ModelError(f"{flag}: {name} returns a batch of its own, whose size is set there")
        return made.batch
    vocabulary = _text_setting(made.model, "vocab_size")
    if vocabulary is None:
        raise ModelError(
            f"--model {name}: it returns no batch, and its model has no config.vocab_size to draw tokens from: "
            "return (model, batch)"
        )
    length = seq_length or min(positions_of(made.model) or DEFAULT_SEQ_LENGTH, DEFAULT_SEQ_LENGTH)
    tokens = torch.randint(vocabulary, (batch_size or 1, length))
    return {"input_ids": tokens, "labels": tokens.clone()}


def positions_of(model: nn.Module) -> int | None:
    """How many tokens the model's config allows; None where it does not say."""
    return _text_setting(model, "max_position_embeddings")


def _text_setting(model: nn.Module, setting: str) -> int | None:
    """Of a transformers config; of one for text and images, of the part for text."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    value = getattr(text, setting, None)
    return value if isinstance(value, int) else None


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, tensors of floating point are made in `dtype` where nobody says otherwise; None: as before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
