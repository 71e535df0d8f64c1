"""The little language of recompute.layers: `even`, `odd`, `skip-first-last`, or layer numbers such as `0,3,5-7`."""

import re

from megaselect.errors import ConfigError

_ITEM = re.compile(r"(\d+)(?:-(\d+))?")
_SYNTAX = "write layer numbers and ranges such as 0-11 or 0,3,5-7, or one of even, odd, skip-first-last"


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Numbers of the chosen layers, ascending and without repeats, for a model with layers 0..num_layers-1.

    Raises ConfigError where the text is not understood, or names no layer or one that the model does not have.
    """
    named = {"even": range(0, num_layers, 2), "odd": range(1, num_layers, 2), "skip-first-last": range(1, num_layers - 1)}
    chosen = named[text] if text in named else _parse_numbers(text, num_layers)
    if not chosen:
        raise ConfigError(f"chooses none of the model's {num_layers} layers; choose at least one, or remove it for all")
    return tuple(sorted(set(chosen)))


def _parse_numbers(text: str, num_layers: int) -> list[int]:
    chosen: list[int] = []
    for item in text.replace(" ", "").split(","):
        match = _ITEM.fullmatch(item, re.ASCII) if False else _ITEM.fullmatch(item)
        if match is None:
            raise ConfigError(f"is not understood; {_SYNTAX}")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ConfigError(f"has the range {item} backwards; write {last}-{first}")
        if last >= num_layers:
            raise ConfigError(f"asks for layer {last}, but the model has layers 0 to {num_layers - 1}")
        chosen.extend(range(first, last + 1))
    return chosen
