import itertools

import pytest

from megaselect.config import RecomputeConfig
from megaselect.recomputation.presets import setting_name
from megaselect.report import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.00 KiB"),
        (52_429, "51.20 KiB"),
        (2**20 - 1, "1024.00 KiB"),
        (2**20, "1.00 MiB"),
        (2_411_725, "2.30 MiB"),
        (2**30 - 1, "1024.00 MiB"),
        (2**30, "1.00 GiB"),
        (81_604_378_624, "76.00 GiB"),
    ],
)
def test_sizes_are_in_the_largest_unit_that_gives_three_digits_or_more(count, shown):
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90_061, "1d 01:01:01")],
)
def test_durations(seconds, shown):
    assert text.duration(seconds) == shown


def test_layers_that_store_the_same_share_a_line(report):
    sizes = {"layers.0": 2**20, "layers.1": 2**21, "layers.2": 2**20, "layers.3": 2**20, "layers.4-5": 2**20}
    lines = text.saved_lines(report(predicted=sizes, measured=dict(sizes), alternatives={}))
    assert [line.text for line in lines[:2]] == [
        "saved per layer: predicted 1.00 MiB, measured 1.00 MiB in layers 0, 2-3, chunk 4-5",
        "                 predicted 2.00 MiB, measured 2.00 MiB in layer 1",
    ]


def test_a_total_that_differs_is_a_difference_too(report):
    off_by_one = report(measured_total=report().predicted_total - 1)
    assert not off_by_one.matches
    lines = [line.text for line in text.saved_lines(off_by_one)]
    assert lines[0] == "WARNING: the bytes saved for backward are not the bytes predicted"
    assert lines[1] == "  in all: predicted 9,647,900 bytes, measured 9,647,899 bytes (-1)"


def test_of_many_layers_that_differ_eight_are_named(report):
    many = {f"layers.{layer}": 10 for layer in range(40)}
    lines = [line.text for line in text.saved_lines(report(predicted=many, measured={}))]
    assert sum("predicted 10 bytes, measured 0 bytes (-10)" in line for line in lines) == 8
    assert "  and 32 more layers" in lines


def test_the_runs_own_setting_is_not_among_the_others(header, report):
    def others(**recompute):
        setting = setting_name(RecomputeConfig(**recompute))
        lines = [line.text for line in text.saved_lines(report(setting=setting))]
        place = next(place for place, line in enumerate(lines) if line.startswith("other settings:"))
        return lines[place:]

    assert others(mode="none") == [
        "other settings:  selective 2.30 MiB, core_attn dropout 1.17 MiB,",
        " " * 17 + "all 1005.70 KiB, full 192.00 KiB",
    ]
    assert others(mode="full", method="uniform") == [
        "other settings:  none 3.55 MiB, selective 2.30 MiB, core_attn dropout 1.17 MiB,",
        " " * 17 + "all 1005.70 KiB",
    ]
    modules = ["gelu", "softmax", "layernorm", "core_attn", "dropout"]
    assert "all" not in " ".join(others(mode="selective", modules=modules)).removeprefix("other settings:")


def test_no_setting_is_parted_from_its_bytes(report):
    """Lines are of 80 columns at most, and of no fewer than one more setting would need."""
    alternatives = {f"setting {'x' * length}": 2**20 for length in range(14)}
    lines = [line.text for line in text.saved_lines(report(alternatives=alternatives, setting=""))][2:]
    assert all(line.endswith("1.00 MiB,") for line in lines[:-1])
    assert all(len(line) <= 80 for line in lines)
    for line, following in itertools.pairwise(lines):
        assert len(f"{line} {following.strip().partition(',')[0]},") > 80
    listed = " ".join(line.removeprefix("other settings:").strip() for line in lines)
    assert listed == ", ".join(f"{name} 1.00 MiB" for name in alternatives)
    assert len(text.saved_lines(report(alternatives={"none": 1}, setting="none"))) == 2


@pytest.mark.parametrize(
    ("recompute", "attention", "noted"),
    [
        ({"mode": "selective", "modules": ["dropout", "softmax"]}, "unfused", True),
        ({"mode": "selective", "modules": ["dropout", "softmax"]}, "fused", False),
        ({"mode": "selective", "modules": ["core_attn", "dropout"]}, "unfused", False),
        ({"mode": "none"}, "unfused", False),
        ({"mode": "full", "method": "sqrt"}, "unfused", False),
    ],
)
def test_only_the_default_modules_bring_the_note_on_megatron(header, recompute, attention, noted):
    config = {"recompute": recompute, "model": {"attention": attention}, "training": {"compile": False}}
    values = [value for _, value in text.header_rows(header(config=config))]
    assert (text.MEGATRON_NOTE in values) == noted


@pytest.mark.parametrize(
    ("first_step", "shown"), [(0, "1,500"), (400, "401 to 1,500 (resumed)"), (1500, "1,500, all done before")]
)
def test_the_header_says_where_a_run_goes_on(header, first_step, shown):
    assert dict(text.header_rows(header(max_steps=1500, first_step=first_step)))["steps"] == shown


def test_the_least_important_fields_give_way(metrics):
    fields = ["step 1/2", *text.step_fields(metrics(1, mfu=0.4125), 3661)]
    short = "step 1/2  loss  8.4000    2,048 tokens/s  ETA 1:01:01  mfu 41.2%"
    assert text.fitting(fields, 80) == f"{short}  grad norm 1.25"
    assert text.fitting(fields, 79) == short
    assert text.fitting(fields, 5) == "step 1/2"


def test_a_step_that_was_left_out_keeps_its_columns(metrics):
    fields = ["step 1/2", *text.step_fields(metrics(1, loss=None, grad_norm=None, skipped_steps=12), 5)]
    assert text.fitting(fields, 80) == "step 1/2  loss       -    2,048 tokens/s  ETA    0:05  skipped  12"


def test_the_lines_of_a_run_form_columns(metrics):
    """However much a loss, a speed and the time that is left change."""
    seen = [(10.8342, 9.6, 3 * 86_400 + 5), (6.5, 123_456.7, 86_399.6), (0.25, 999_999.6, 36_000), (2, 98_765_432, 59)]
    lines = [
        text.fitting(text.step_fields(metrics(1, loss=loss, tokens_per_s=speed, mfu=speed / 1e8), left), 100)
        for loss, speed, left in seen
    ]
    assert lines == [
        "loss 10.8342       10 tokens/s  ETA  3d 00h  mfu  0.0%  grad norm 1.25",
        "loss  6.5000  123,457 tokens/s  ETA  1d 00h  mfu  0.1%  grad norm 1.25",
        "loss  0.2500    1.00M tokens/s  ETA 10h 00m  mfu  1.0%  grad norm 1.25",
        "loss  2.0000   98.77M tokens/s  ETA    0:59  mfu 98.8%  grad norm 1.25",
    ]


@pytest.mark.parametrize(
    ("phase_ms", "shown"),
    [
        ({"data": 1, "forward": 30, "backward": 60}, "data 1.0%, forward 30.0%, backward 60.0%, rest 9.0%"),
        ({"forward": 40, "backward": 60}, "forward 40.0%, backward 60.0%"),
        ({"forward": 50, "backward": 150}, "forward 25.0%, backward 75.0%"),  # medians may exceed the step's
        ({"data": 100 / 3, "forward": 100 / 3, "backward": 100 / 3}, "data 33.4%, forward 33.3%, backward 33.3%"),
        ({"forward": 99.96}, "forward 100.0%"),
        ({}, None),
    ],
)
def test_the_shares_of_a_steps_time_sum_to_100_percent(summary, phase_ms, shown):
    rows = dict(text.summary_rows(summary(step_ms=100.0, phase_ms=phase_ms)))
    assert rows.get("time by phase") == shown


def test_what_a_summary_does_not_know_is_left_out(summary):
    nothing = summary(
        final_loss=None,
        valid_loss=None,
        best_valid_loss=None,
        tokens_per_s=None,
        step_ms=None,
        saved_bytes=None,
        peak_bytes=None,
        peak_kind="of tensors",
    )
    assert [label for label, _ in text.summary_rows(nothing)] == ["steps", "recompute", "run directory"]
    assert dict(text.summary_rows(summary(valid_loss=None)))["valid loss"] == "best 6.2500, earlier"
    known = dict(text.summary_rows(summary(mfu=0.4125, hfu=0.5)))
    assert known["speed"] == "5,650 tokens/s, 181.2 ms per step (medians), mfu 41.2%, hfu 50.0%"
