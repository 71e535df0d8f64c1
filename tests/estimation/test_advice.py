"""Training takes what estimates advise: the flags are read out of the sentence and put to training's own checks."""

import re

import pytest
import torch

from megaselect.config import Config
from megaselect.devices import DTYPES, Placement, check_kernels
from megaselect.errors import ConfigError, DeviceError
from megaselect.estimation.estimate import estimate_for
from megaselect.estimation.target import resolve_target
from megaselect.prediction.saved_bytes import check_saves

HEADS = {"head size 256": 4, "head size 128": 8, "head size 64": 16}
# Of four layers, which take as many kinds of advice as 24 do: more GPUs, a smaller micro-batch, full, auto, none.
MEMORY = ("24MiB", "3GiB", "3300MiB", "3800MiB", "5GiB", "40GiB")


def flags_of(advice: str) -> dict[str, object]:
    """Config overrides, from every flag but those that ask for more GPUs."""
    found = dict(re.findall(r"--([\w.-]+) ((?:[\w]+(?: (?=dropout))?)+)", advice))
    names = {"attention": "model.attention", "training.micro-batch-size": "training.micro_batch_size"}
    names |= {"recompute": "recompute.mode", "recompute-modules": "recompute.modules"}
    names |= {"recompute-method": "recompute.method"}
    overrides = {names[flag]: value for flag, value in found.items() if flag in names}
    if "recompute.modules" in overrides and overrides["recompute.modules"] != "all":
        overrides["recompute.modules"] = str(overrides["recompute.modules"]).split()
    return overrides


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("attention", ["unfused", "fused", "sdpa"])
def test_training_takes_what_is_advised(attention, heads, dropout, shipped, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # asked is what a GPU runs
    own = {"model__attention": attention, "model__num_attention_heads": HEADS[heads], "model__dropout_p": dropout}
    own |= {"training__micro_batch_size": 12, "training__global_batch_size": 60, "training__dtype": "bf16"}
    own["model__num_layers"] = 4
    device = torch.device("cuda", 0)
    try:
        config = shipped("gpt-350m", **own)
        check_kernels(config.model, Placement(device, torch.bfloat16))
    except ConfigError:
        assert (attention, dropout) == ("sdpa", 0.1)
        return
    except DeviceError as error:
        assert (attention, heads) == ("fused", "head size 256")
        with pytest.raises(DeviceError, match=re.escape(str(error))):
            estimate_for(config, resolve_target("a100-40gb", None, "bf16"))
        return
    advised = set()
    for memory in MEMORY:
        advice = estimate_for(config, resolve_target("a100-40gb", memory, "bf16")).advice
        overrides = flags_of(advice)
        advised.add(tuple(map(str, overrides.items())))
        taken = Config.from_dict(config.to_dict(), overrides=overrides)
        check_kernels(taken.model, Placement(device, DTYPES["bf16"]))
        check_saves(taken, 2)
        hints = re.findall(r"with --attention (\w+)", advice)
        assert not (hints and HEADS[heads] == 4)
    assert len(advised) >= 3


def test_a_head_size_that_the_kernels_refuse_is_no_row_on_a_gpu_alone(shipped):
    config = shipped("gpt-350m", model__num_attention_heads=4)
    assert list(estimate_for(config, resolve_target("a100-40gb", None, "bf16")).rows) == ["unfused"]
    assert list(estimate_for(config, resolve_target("cpu", "40GiB", "fp32")).rows) == ["unfused", "fused"]
    torch_alone = shipped("gpt-350m", model__num_attention_heads=4, model__kernel_backend="torch")
    assert "fused" in estimate_for(torch_alone, resolve_target("a100-40gb", None, "bf16")).rows
