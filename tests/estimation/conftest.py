"""The tiny models of tests/model, and configs and targets of estimates."""

import sys
from pathlib import Path

import pytest

from megaselect.config import Config
from megaselect.estimation.target import Target, resolve_target

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/models"), str(ROOT / "tests/estimation")]


@pytest.fixture
def shipped():
    """shipped(name, **overrides with __ for the dot): a config of configs/."""

    def load(name, **overrides):
        return Config.from_yaml(
            ROOT / f"configs/{name}.yaml", {key.replace("__", "."): overrides[key] for key in overrides}
        )

    return load


@pytest.fixture
def on_cpu():
    """on_cpu(memory, dtype): a CPU that may hold so much."""

    def target(memory="4GiB", dtype="fp32") -> Target:
        return resolve_target("cpu", memory, dtype)

    return target
