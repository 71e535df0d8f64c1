"""The figure in docs/ is the one that the code draws, and its bars are the table's sums."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from megaselect.config import Config
from megaselect.report.kept_bytes_svg import draw, kept_in_units

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    return Config.from_yaml(ROOT / "configs/paper-175b.yaml")


def test_the_bars_are_the_sums_of_the_documentation(config):
    sums = {name: sum(parts.values()) for name, parts in kept_in_units(config).items()}
    expected = {"none": 114, "selective": 64, "core_attn dropout": 32, "all": 20, "full": 2}
    assert sums == {**expected, "fused none": 34, "fused all": 20}


def test_the_figure_in_the_documentation_is_the_one_that_is_drawn(config):
    drawn = draw(config, "paper-175b")
    assert (ROOT / "docs/images/kept-bytes.svg").read_text(encoding="utf-8") == drawn
    assert len(ElementTree.fromstring(drawn).findall(".//{*}rect")) == 1 + 8 + (8 + 6 + 5 + 3 + 1 + 6 + 3)
