import re

import pytest

from megaselect.report.wandb_names import run_id


@pytest.mark.parametrize(
    ("label", "start"),
    [("none", "none"), ("fused core_attn dropout", "fused_core_attn_dropout"), ("full: 2", "full_2")],
)
def test_an_id_starts_with_the_setting_and_holds_what_an_id_may(label, start):
    ids = {run_id(label) for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch(rf"{start}-[0-9a-f]{{8}}", name) for name in ids)
