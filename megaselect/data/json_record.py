"""One line of JSON, with values in it that Python's reader does not take: JSON has no limits on numbers and nesting."""

import json
import re
from typing import Any

# All that nests, and strings, in which brackets mean nothing.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]')
_CLOSING = {"[": "]", "{": "}"}


class NotJSONError(ValueError):
    """What is wrong with a line that is no JSON."""


def read_record(line: str) -> Any:
    """The value that a line spells. Raises NotJSONError.

    A whole number of more digits than Python converts becomes a float, and where a record nests deeper than Python
    follows, arrays and objects in it are left empty: the fields of the record are there all the same.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise NotJSONError(str(error)) from None
    except RecursionError:
        line = _without_inner_values(line)
    except ValueError:
        pass  # too many digits
    try:
        return json.loads(line, parse_int=float)
    except ValueError as error:
        raise NotJSONError(str(error)) from None


def _without_inner_values(line: str) -> str:
    """The line with arrays and objects inside the outermost emptied, so that their content is not looked at."""
    kept: list[str] = []
    open_brackets: list[str] = []
    copied = 0
    for token in _TOKEN.finditer(line):
        bracket = token[0]
        if bracket in _CLOSING:
            open_brackets.append(bracket)
            if len(open_brackets) == 2:
                kept.append(line[copied : token.end()])
        elif bracket in _CLOSING.values():
            if not open_brackets or _CLOSING[open_brackets.pop()] != bracket:
                raise NotJSONError(
                    f"{bracket} closes nothing: line 1 column {token.start() + 1} (char {token.start()})"
                )
            if len(open_brackets) == 1:
                copied = token.start()
    if open_brackets:
        raise NotJSONError(f"{len(open_brackets):,} brackets are not closed")
    return "".join(kept) + line[copied:]
