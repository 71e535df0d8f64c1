"""docs/verify.md: its code runs, every output in it is what the code prints, and its tables name every check."""

from pathlib import Path

import pytest
import torch
from run_document import as_printed

from megaselect.verification import directional, module_checks, own_model

DOCUMENT = Path(__file__).parents[2] / "docs/verify.md"
ANY_MODULE = (
    *(module_checks.BACKWARD, module_checks.RANDOM, module_checks.BITS, directional.NAME),
    *(module_checks.SECOND_RUN, module_checks.STATE, module_checks.GRADIENTS, module_checks.SAVES),
)


def test_every_output_is_what_the_code_prints():
    text = DOCUMENT.read_text(encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        assert as_printed(text) == text
    assert "failed  random numbers: layers.1.dropout: aten.bernoulli_ in backward draws other numbers" in text
    assert "\nTrue\n" in text


@pytest.mark.parametrize("names", [own_model.CHECKS, ANY_MODULE], ids=["our model", "any module"])
def test_each_check_has_a_row(names):
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    start = rows.index(names[0])
    assert rows[start : start + len(names)] == list(names)
