"""The little language of recompute.layers: `even`, `odd`, `skip-first-last`, or layer numbers such as `0,3,5-7`."""

import re

from megaselect.errors import ConfigError

_NUMBERS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Numbers of the chosen layers, ascending and without repeats, for a model with layers 0..num_layers-1.

    Raises ConfigError where the text is not understood, or names no layer or one that the model does not have.
    """
    every = range(num_layers)
    named = {"even": every[::2], "odd": every[1::2], "skip-first-last": every[1:-1]}
    if text in named:
        chosen = tuple(named[text])
    else:
        chosen = tuple(layer for span in _apart(_parse_numbers(text, num_layers)) for layer in span)
    if not chosen:
        raise ConfigError(f"recompute.layers = {text!r} chooses none of the {num_layers} layers; name one, such as 0")
    return chosen


def _apart(spans: list[range]) -> list[range]:
    """The same numbers, ascending, each in one span: in a time that depends on how many spans there are."""
    apart: list[range] = []
    for span in sorted(spans, key=lambda span: span.start):
        if apart and span.start <= apart[-1].stop:
            apart[-1] = range(apart[-1].start, max(apart[-1].stop, span.stop))
        else:
            apart.append(span)
    return apart


def _parse_numbers(text: str, num_layers: int) -> list[range]:
    spans: list[range] = []
    for item in text.split(","):
        match = _NUMBERS.fullmatch(item.strip())
        if match is None:
            raise ConfigError(
                f"recompute.layers = {text!r} is not understood at {item!r}; "
                "write layers such as 0-11 or 0,3,5-7, or one of even, odd, skip-first-last"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ConfigError(f"recompute.layers = {text!r} has {item.strip()} backwards; write {last}-{first}")
        if last >= num_layers:
            raise ConfigError(
                f"recompute.layers = {text!r} asks for layer {last}, but the model has layers 0-{num_layers - 1}"
            )
        spans.append(range(first, last + 1))
    return spans
