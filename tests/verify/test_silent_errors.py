"""docs/silent-errors.md and docs/verify-coverage.md: every row is a case that runs, and says what is quoted."""

from pathlib import Path

import pytest
from corpus import guide
from corpus.architectures import all_architectures
from corpus.catalogue import FAULTS
from corpus.outcome import missing
from corpus.wrappers import WRAPPERS

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "silent-errors.md").read_text(encoding="utf-8")
QUOTES = guide.quotes(GUIDE)


def test_the_guide_has_a_row_for_each_fault():
    assert list(QUOTES) == list(FAULTS)


@pytest.mark.parametrize("name", QUOTES)
def test_a_row_quotes_what_verify_says(name):
    reason = missing(FAULTS[name].needs)
    if reason:
        pytest.skip(reason)
    assert guide.without_numbers(QUOTES[name]) == guide.without_numbers(guide.says_now(FAULTS[name]))


@pytest.mark.parametrize("row", list(guide.ROW.finditer(GUIDE)), ids=lambda row: row["name"])
def test_a_row_says_all_that_a_row_must(row):
    parts = [line.partition(":")[0] for line in row["text"].splitlines() if line.startswith("**")]
    assert parts == ["**Done**", "**Happens**", "**Seen**", "**Mend**"]


def test_numbers_and_nothing_else_are_masked():
    masked = guide.without_numbers(
        "failed same bits: layers.1.fc1 differs in 1,536 of 64 (2.0e-01 of it), [8] (and 9 more)"
    )
    assert masked == "failed same bits: layers.1.fc1 differs in # of # (# of it), [#] (and # more)"


def test_the_coverage_names_every_case():
    text = (DOCS / "verify-coverage.md").read_text(encoding="utf-8")
    for name in [architecture.name for architecture in all_architectures()] + list(WRAPPERS):
        assert f"| {name} |" in text
    for name in FAULTS:
        assert f"| [{name}](silent-errors.md#{name}) |" in text
    assert "**" not in text, "something is not as it should be"
