"""Turns pydantic's list of errors into one line that names the setting, where it came from, and the remedy."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from megaselect.config.format_value import LONGEST_VALUE, format_value
from megaselect.config.origins import Origins
from megaselect.config.replaced import REPLACED, explain_replaced
from megaselect.errors import ConfigError

_KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "tuple": "must be a list, such as [softmax, dropout]",
}
_PLAIN = {
    "finite_number": "must be a finite number",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_large": "is larger than any number that makes sense here: it must be less than 2^64",
    "switch_word": "is no value of this setting; YAML reads on and yes as True, off and no as False: quote such words",
}


def explain(error: ValidationError, names: Sequence[str], origins: Origins) -> ConfigError:
    """The first error as one line. Unknown keys come first: a misspelt key is often the cause of a missing one.

    names: every dotted name of the schema.
    """
    problems = error.errors(include_url=False)
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            return ConfigError(_explain_unknown(".".join(map(str, problem["loc"])), names, origins))
    missing = [".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "missing"]
    if missing:
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        return ConfigError(f"{origins.source}: {', '.join(missing)} {verb} missing; add {them}")
    return ConfigError(_explain_value(problems[0], origins))


def nearest_setting(name: str, names: Sequence[str]) -> list[str]:
    """The settings that a wrong dotted or bare name most likely meant: same last part, same beginning, or closest."""
    section, _, leaf = name.rpartition(".")
    if name.replace("-", "_") in REPLACED:
        replacement = REPLACED[name.replace("-", "_")]
        return [known for known in names if known.replace("-", "_") == replacement]
    same_leaf = [known for known in names if known.rpartition(".")[2] == leaf]
    same_start = [known for known in names if known.startswith(name)]
    if same_leaf or 0 < len(same_start) <= 3:
        return same_leaf or same_start
    # By last parts, as equal sections would make any two names look alike; the section that was named goes first.
    for pool in ([known for known in names if known.rpartition(".")[0] == section], names):
        leaves = {known.rpartition(".")[2]: known for known in reversed(pool)}
        if close := get_close_matches(leaf, leaves, n=1, cutoff=0.65):
            return [leaves[close[0]]]
    return []


def nearest_choice(value: Any, choices: Sequence[str]) -> str:
    """`; did you mean full?`, or nothing where no choice is near."""
    word = value.lower() if isinstance(value, str) and len(value) <= LONGEST_VALUE else format_value(value)
    close = get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain_unknown(name: str, names: Sequence[str], origins: Origins) -> str:
    where = origins.flags.get(name, origins.source)
    section = name.partition(".")[0]
    sections = list(dict.fromkeys(known.partition(".")[0] for known in names))
    if section not in sections and (close := get_close_matches(section, sections, n=1)):
        return f"{where}: unknown section {section}; did you mean {close[0]}?"
    if replacement := explain_replaced(name):
        return f"{where}: unknown key {name}; {replacement}"
    if meant := nearest_setting(name, names):
        return f"{where}: unknown key {name}; did you mean {' or '.join(meant)}?"
    if section not in sections:
        return f"{where}: unknown section {section}; the sections are {', '.join(sections)}"
    inside = [known.partition(".")[2] for known in names if known.startswith(f"{section}.")]
    return f"{where}: unknown key {name}; {section} has {', '.join(inside)}"


def _explain_value(problem: Any, origins: Origins) -> str:
    name, value = ".".join(map(str, problem["loc"][:2])), problem["input"]
    if value is None:
        return f"{origins.source}: {name} is empty; give it a value, or remove it"
    if name in origins.flags:
        subject = f"{origins.flags[name]} {value if isinstance(value, str) else format_value(value)}"
    else:
        subject = f"{origins.source}: {name} = {format_value(value)}"
    return f"{subject}: {_demand(problem, name)}"


def _demand(problem: Any, name: str) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {_any_of(choices)}{nearest_choice(problem['input'], choices)}"
    if kind == "model_type":
        return f"must be a mapping of settings, such as `{name}:` with `key: value` lines under it"
    if kind in _PLAIN:
        return _PLAIN[kind].format(**context)
    return _KINDS.get(kind.partition("_")[0], problem["msg"])


def _any_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
