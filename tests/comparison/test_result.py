import json
from dataclasses import replace

import pytest
from measurements import measurement, row

from megaselect.comparison.result import Comparison, Context, read_comparison, to_json, write_comparison
from megaselect.comparison.summary import Measured, summarise
from megaselect.errors import ComparisonError

CONTEXT = Context(
    *("tiny", {"model": {"num_layers": 2}}, "cpu, 1 thread", "float32", 10, 70, None, 2, 1, 1),
    *("2.13.0", "0.1.0", "3.11.2", "2026-11-25T12:00:00+00:00", "megaselect compare", None, ("a note",)),
)
FAILED = Measured(row("all"), failure="out of memory")
SETTINGS = summarise([Measured(row("none"), [measurement()]), Measured(row("full"), [measurement()]), FAILED], 70)
COMPARISON = Comparison(CONTEXT, SETTINGS, "A verdict.")


def test_a_result_goes_to_json_and_back(tmp_path):
    path = tmp_path / "compare.json"
    write_comparison(COMPARISON, path)
    assert read_comparison(path) == COMPARISON
    mapping = json.loads(path.read_text())
    assert mapping["settings"][1]["agreement"] == {
        "reference": "none", "equal": True, "first_different_step": None, "loss_differences": [0.0, 0.0, 0.0],
    }  # fmt: skip
    assert mapping["settings"][2]["failure"] == "out of memory"
    assert COMPARISON.trained == list(SETTINGS[:2])
    assert COMPARISON.setting("full") is SETTINGS[1]
    assert COMPARISON.setting("core_attn") is None


def test_rows_have_the_same_keys_whether_they_trained_or_not():
    none, _, failed = COMPARISON.to_dict()["settings"]
    assert list(failed) == list(none)
    assert (failed["saved"], failed["losses"]) == (None, ())


@pytest.mark.parametrize(("row", "key"), [(0, "saved"), (2, "name")])
def test_a_row_without_what_its_outcome_needs_is_refused(row, key):
    mapping = COMPARISON.to_dict()
    del mapping["settings"][row][key]
    outcome = "failed" if row == 2 else "trained"
    with pytest.raises(ComparisonError, match=f"^not a comparison's result: settings.{row}.{outcome}.{key}: field req"):
        Comparison.from_dict(mapping)


def test_keys_that_a_later_version_adds_are_no_error():
    mapping = COMPARISON.to_dict()
    mapping["settings"][0]["from_the_future"] = mapping["context"]["from_the_future"] = 1
    assert Comparison.from_dict(json.loads(json.dumps(mapping))) == COMPARISON


def test_no_json_holds_nan():
    [none, *_] = SETTINGS
    with pytest.raises(ValueError, match="JSON"):
        to_json(replace(COMPARISON, settings=(replace(none, losses=(float("nan"),)),)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "format_version is None, this version reads 1: compare again"),
        ('{"format_version": 2}', "format_version is 2, this version reads 1: compare again"),
        ('{"format_version": 1, "settings": [], "verdict": ""}', "not a comparison's result: context: field required"),
        ("[]", "{path} is no comparison's result: megaselect compare writes one, compare.json"),
        ("text", "{path} is no JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_what_is_no_result_is_refused(text, message, tmp_path):
    path = tmp_path / "compare.json"
    path.write_text(text)
    with pytest.raises(ComparisonError) as caught:
        read_comparison(path)
    assert str(caught.value) == message.format(path=path)


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path):
    path = tmp_path / "absent" / "compare.json"
    with pytest.raises(ComparisonError, match=f"^cannot read {path}: No such file or directory$"):
        read_comparison(path)
    with pytest.raises(
        ComparisonError, match=f"^cannot write {path}: No such file or directory; choose another --out$"
    ):
        write_comparison(COMPARISON, path)
