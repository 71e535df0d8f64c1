"""docs/architecture.md: its picture is what is drawn, its rules are contracts, and contracts find what breaks them."""

import ast
import re
import shutil
import subprocess
import sys

from draw_architecture import ROOT, contracts, draw

CLAIM = re.compile(r"\bno torch\b|nothing but Python", re.IGNORECASE)


def test_the_picture_is_the_one_that_is_drawn():
    assert (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8") == draw()


def test_each_rule_is_a_contract():
    document = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rules = document.partition("## Rules")[2].partition("\n## ")[0]
    assert re.findall(r"^- \*\*(.+?)\*\*:", rules, re.MULTILINE) == list(contracts())


def test_modules_that_say_that_they_need_no_torch_are_those_of_the_contract():
    claiming = []
    for path in (ROOT / "megaselect").rglob("*.py"):
        if CLAIM.search(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""):
            parts = path.relative_to(ROOT).with_suffix("").parts
            claiming.append(".".join(part for part in parts if part != "__init__"))
    assert sorted(contracts()["No torch"]["source_modules"]) == sorted(claiming)


def test_an_import_against_the_order_breaks_a_contract(tmp_path):
    for name in ("megaselect", "kernels", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert _lint(tmp_path).returncode == 0
    with (tmp_path / "megaselect/prediction/flops.py").open("a") as module:
        module.write("\nfrom megaselect.training import loop\n")
    broken = _lint(tmp_path)
    assert broken.returncode == 1
    assert "Packages import one way BROKEN" in broken.stdout
    assert "No torch BROKEN" in broken.stdout


def _lint(directory):
    code = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True)
