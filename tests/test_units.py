"""Times and steps as people write them."""

import pytest

from megaselect.errors import ConfigError
from megaselect.units import parse_duration, parse_steps


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90m", 5400), ("8h", 28_800), ("1h30m", 5400), ("2d", 172_800), ("1d2h3m4s", 93_784), (" 1m ", 60)],
)
def test_a_time_in_seconds(text, seconds):
    assert parse_duration(text, "--exit-after") == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "-1h", "1.5h", "30m1h", "1h 30m", "0h0m"])
def test_what_is_no_time(text):
    with pytest.raises(ConfigError, match=r"^--exit-after .*: must be a time such as 8h"):
        parse_duration(text, "--exit-after")


def test_steps_include_the_last():
    assert (list(parse_steps("7", "--profile")), list(parse_steps("10-12", "--profile"))) == ([7], [10, 11, 12])


@pytest.mark.parametrize("text", ["", "0", "0-3", "4-3", "a", "1-", "-2", "1-2-3"])
def test_what_is_no_steps(text):
    with pytest.raises(ConfigError, match=r"^--profile .*: must be a step, such as 10"):
        parse_steps(text, "--profile")
