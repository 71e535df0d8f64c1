"""docs/any-model.md: its code runs, and every output in it is what the code prints."""

from pathlib import Path

import torch
from run_document import as_printed

DOCUMENT = Path(__file__).parents[2] / "docs/any-model.md"


def test_every_output_is_what_the_code_prints():
    text = DOCUMENT.read_text(encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        assert as_printed(text) == text
    assert "\npredicted 8600576\nTrue True\n" in text
    assert "\n8MiB True True\n" in text
