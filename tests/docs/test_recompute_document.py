"""docs/recompute.md: what its Python prints is what it shows."""

from pathlib import Path

from run_document import FENCES, as_printed

ROOT = Path(__file__).parents[2]


def test_every_output_in_the_document_is_what_its_code_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    text = (ROOT / "docs/recompute.md").read_text(encoding="utf-8")
    printed = as_printed(text)
    assert [line.rstrip() for line in printed.splitlines()] == text.splitlines()
    assert len(FENCES.findall(text)) >= 2
