"""Reads a YAML file strictly: no key twice, no key that is not text, no number that is another one to YAML than to its
reader, and one line that says what is wrong and where."""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from megaselect.config.format_value import LONGEST_VALUE, format_value
from megaselect.errors import ConfigError

_CONVERSION_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
_MAX_KEYS = 10_000

# What YAML 1.1 reads in base 8 and in base 60: 010 as 8, 1:30 as 90.
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_LARGEST_FILE_BYTES = 2**18


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader lets the last of two equal keys win and reads `on:` as True; both are mistakes here."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._key_of: dict[yaml.Node, str] = {}  # of a value, or of the list that it is in

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number in base 10, 16 (0x) or 2 (0b)."""
        number = super().construct_yaml_int(node)
        if ":" in node.value:
            self._refuse(node, number, 60, f"write {format_value(number)}")
        elif _OCTAL.fullmatch(node.value) and (decimal := int(node.value.replace("_", ""))) != number:
            self._refuse(
                node, number, 8, f"write {format_value(decimal)} or {format_value(number)}, whichever is meant"
            )
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A number in base 10."""
        number = super().construct_yaml_float(node)
        if ":" in node.value:
            self._refuse(node, number, 60, f"write {format_value(number)}")
        return number

    def _refuse(self, node: yaml.ScalarNode, number: float, base: int, remedy: str) -> NoReturn:
        written = node.value[:LONGEST_VALUE]
        place = f"line {node.start_mark.line + 1}: " + (f"{self._key_of[node]}: " if node in self._key_of else "")
        reading = f"{written} is {format_value(number)} to YAML (base {base})"
        raise ConfigError(f"{place}{reading}; {remedy}, or quote it if it is text")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_line: dict[Any, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: the key {key_node.value} is not text but {key!r} to YAML; quote it")
            if key in first_line:
                raise ConfigError(
                    f"line {line}: the key {key} was given on line {first_line[key]} already; delete one of the two"
                )
            first_line[key] = line
            values = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            self._key_of.update(dict.fromkeys(values, key))
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (<<) of merge keys may double their number with every line."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:
            raise ConfigError(f"line {node.start_mark.line + 1}: merges more than {_MAX_KEYS:,} keys")


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError where there is no file, or it is not text, YAML or a mapping."""
    text = _read_text(Path(path))
    try:
        # _StrictLoader is a SafeLoader: it builds plain values only.
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{path}: {line}not valid YAML: {problem}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, *_CONVERSION_ERRORS) as error:
        # Such as a control character, a date in month 13, thousands of brackets, or a tag on what is no such value.
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise ConfigError(f"{path}: the file is empty; it needs at least the section model")
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "single value"
        raise ConfigError(f"{path}: holds a {kind}; a config is a mapping of sections, such as `model:`")
    return content


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {_LARGEST_FILE_BYTES // 1024} KiB, which no config is")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (byte {error.start} is not UTF-8); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
