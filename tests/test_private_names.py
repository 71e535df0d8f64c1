"""Private names of other libraries stand in one module, behind checks that run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOME = ROOT / "megaselect" / "compatibility.py"
SOURCES = [path for folder in ("megaselect", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]
DOCUMENT = ROOT / "docs" / "torch-versions.md"
# Documented under these names: namedtuple's methods, sys._getframe, os._exit.
DOCUMENTED = {"_replace", "_asdict", "_fields", "_getframe", "_exit"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(trees):
    """What the package itself defines: functions, classes, fields, attributes of self."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and owner_of(node) in ("self", "cls")
            ):
                yield node.attr


def owner_of(node):
    return node.value.id if isinstance(node.value, ast.Name) else ""


def foreign_names(tree, own):
    """(line, text) of each use of what another library calls private; operators in torch.ops are not."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom) else ""
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not text.startswith("torch.ops."):
            if node.attr not in own | DOCUMENTED:
                yield node.lineno, text
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("megaselect"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if any(is_private(name) and name not in DOCUMENTED for name in names):
                yield node.lineno, text
        elif isinstance(node, ast.Import) and any(map(is_private, ".".join(a.name for a in node.names).split("."))):
            yield node.lineno, text
        elif isinstance(node, ast.Constant) and is_private_path(node.value):
            yield node.lineno, node.value


def is_private_path(value):
    """A string such as torch.a._b."""
    is_path = isinstance(value, str) and value.startswith("torch.") and " " not in value
    return is_path and any(map(is_private, value.split(".")))


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_no_module_but_one_holds_private_names_of_other_libraries(trees):
    own = set(own_names(trees.values()))
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path, tree in trees.items()
        if path != HOME
        for line, text in foreign_names(tree, own)
    ]
    assert not found


def test_the_search_sees_them(trees):
    own = set(own_names(trees.values()))
    source = (
        "import torch._dynamo\nfrom torch._C import x\nfrom torch import _foreach_copy_\nstorage._cdata\ntorch.ops.a._b"
    )
    assert [line for line, _ in foreign_names(ast.parse(source), own)] == [1, 2, 3, 4]
    assert any(foreign_names(trees[HOME], own))


def test_the_document_counts_them_and_has_none_that_is_gone():
    section = DOCUMENT.read_text(encoding="utf-8").partition("## The private names that are left")[2]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert f"\n{len(rows)} uses, each with its reason:" in section
    names = [name for row in rows for name in re.findall(r"`…?([^`]+)`", row.split("|")[1])]
    source = HOME.read_text(encoding="utf-8")
    assert [name for name in names if name.split(".")[-1] not in source] == []
