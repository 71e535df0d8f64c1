import pytest

from megaselect.config.schema import MODULES
from megaselect.report.wandb_names import setting_label


@pytest.mark.parametrize(
    ("attention", "mode", "modules", "label"),
    [
        ("unfused", "none", ["softmax", "dropout"], "none"),
        ("unfused", "selective", ["dropout", "softmax"], "selective"),
        ("unfused", "selective", ["core_attn", "dropout"], "selective core_attn dropout"),
        ("unfused", "selective", list(reversed(MODULES)), "all"),
        ("fused", "full", ["softmax", "dropout"], "fused full"),
        ("sdpa", "none", ["softmax", "dropout"], "sdpa none"),
    ],
)
def test_a_run_is_labelled_by_its_setting(attention, mode, modules, label):
    config = {"model": {"attention": attention}, "recompute": {"mode": mode, "modules": modules}}
    assert setting_label(config) == label
