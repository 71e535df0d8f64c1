"""The words of data.blend: weight, dataset, weight, dataset, …"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator

from megaselect.errors import ConfigError

_EXAMPLE = "give pairs of a weight and a dataset, such as 0.7 data/a 0.3 data/b"


def _numbers_as_words(value: Any) -> Any:
    """The weights as text, which in YAML are numbers."""
    if not isinstance(value, list | tuple):
        return value
    return [str(word) if type(word) in (int, float) else word for word in value]


BlendWords = Annotated[tuple[str, ...], BeforeValidator(_numbers_as_words)]


def parse_blend(words: Sequence[str]) -> list[tuple[Fraction, str]]:
    """(weight, prefix) of each dataset, in the order given. Raises ConfigError."""
    if len(words) % 2:
        raise ConfigError(f"data.blend has {len(words)} words ({' '.join(words)}), not pairs of two; {_EXAMPLE}")
    pairs = [(_weight(word), prefix) for word, prefix in zip(words[::2], words[1::2], strict=True)]
    prefixes = words[1::2]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise ConfigError(f"data.blend names {prefix} twice; name it once, with the sum of the weights")
    return pairs


def _weight(word: str) -> Fraction:
    try:
        nearest = float(word)
        # By its decimal digits, all of them: 0.7 is to mean 7/10, and not the binary number that is nearest.
        weight = Fraction(word) if math.isfinite(nearest) else None
    except ValueError:
        raise ConfigError(f"data.blend has {word!r} where a weight belongs; {_EXAMPLE}") from None
    if weight is None or nearest <= 0:
        raise ConfigError(f"data.blend has the weight {word}; weights are more than 0, such as 0.7")
    return weight
