"""The imports among the modules of benchmarks/ follow the order that the package's docstring gives."""

import ast
import re
from pathlib import Path

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
FILES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in FOLDER.rglob("*.py")
    if path.name != "__init__.py"
}
# The lines of the list: four spaces, then what the modules are, or as many spaces, then their names.
ORDER = [name for line in re.findall(r"^ {4}.{24}  (\S.*)$", benchmarks.__doc__, re.MULTILINE) for name in line.split()]


def imported(path):
    """Modules of benchmarks/ that a file imports anywhere, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name.removeprefix("benchmarks.") for name in names if name.startswith("benchmarks."))


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(FILES)


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {other}"
        for name, path in FILES.items()
        for other in imported(path)
        if other in FILES and ORDER.index(other) >= ORDER.index(name)
    ]
    assert wrong == []
