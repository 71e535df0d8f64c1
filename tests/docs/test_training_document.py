"""docs/training.md: its Python trains, and prints what the document shows."""

from pathlib import Path

from run_document import FENCES, as_printed

from megaselect import Callback

DOCUMENT = Path(__file__).parents[2] / "docs/training.md"


def test_every_output_in_the_document_is_what_its_code_prints(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the runs are in its runs/
    text = DOCUMENT.read_text(encoding="utf-8")
    assert as_printed(text) == text
    assert len(FENCES.findall(text)) == 1
    assert text.count("\nTrue\n```\n") == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_each_method_of_a_callback_has_a_row():
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| `on_")]
    assert [row.partition("(")[0] for row in rows] == [name for name in vars(Callback) if name.startswith("on_")]
