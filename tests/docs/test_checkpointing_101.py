"""docs/checkpointing-101.md: its code runs in order, and every output in it is what the code prints."""

from pathlib import Path

import pytest
import torch
from run_document import as_printed

DOCUMENT = Path(__file__).parents[2] / "docs/checkpointing-101.md"

# What the prose says of the outputs: rewriting them from a run must not turn these round.
CLAIMS = [
    "early stop True: backward started [0, 1, 2] finished [0, 1]",
    "reentrant True: 4 of 4 gradients missing, warnings: 1",
    "reentrant False: 0 of 4 gradients missing, warnings: 0",
    "TypeError with 0 arguments\nTypeError with 1 arguments",
    "       4  3 x 4 and 4             8    10  True",
    "            16       1           16    19",
    "Function: 4 of 4 gradients missing, loss falls: False\nsame gradient of the input: True",
    "by backward   weights' gradients: RuntimeError; the input's alone, and .grad was written to 4 weights",
    "preserve_rng_state=True: same loss True, same gradients True",
    "preserve_rng_state=False: same loss True, same gradients False",
    "no checkpoint True | preserved True | not preserved False",
    "reentrant\n   first layer runs, requires_grad False\n   saved 8192",
    "non-reentrant\n   first layer runs, requires_grad True\n   saved 8192",
    "selective  seen by hooks  16384  in the cache 114688  FLOPs 6291456  True",
    "none and selective 6291456 full 8126464",
    "none 180224\nselective 131072\nfull 16384",
    "none             702464  2231824  True          True",
    "selective        530432  1709584  True          True",
    "selective all    247808   861712  True          True",
    "full              24576   192016  True          True",
    "dropout, preserved      passed True   failed: []",
    "dropout, not preserved  passed False  failed: ['random numbers', 'same bits', 'second run']",
    "batch norm              passed False  failed: ['state']",
    "input gradient only     passed False  failed: ['differences', 'gradients']",
]


@pytest.fixture(scope="module")
def printed():
    with torch.random.fork_rng(devices=[]):
        return as_printed(DOCUMENT.read_text(encoding="utf-8"))


def test_every_output_is_what_the_code_prints(printed):
    assert printed == DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_outputs_bear_out_the_prose(printed, claim):
    assert f"\n{claim}\n" in printed
