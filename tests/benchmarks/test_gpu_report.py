"""What a run on a GPU tells: its verdict on bits, what was not measured, the order of tests, what is carried."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.parts import Part
from benchmarks.gpu.report import DIFFER, EQUAL, NOT_SHOWN, Findings
from megaselect.comparison.provenance import source_commit

ROOT = Path(__file__).parents[2]
CASES = [(name, f"measure '{name}'") for name in ("bits a", "bits b", "K1 s=4096", "bits a, compiled")]
# What a GPU image has, with what belongs to it; wandb is imported where a run is logged to it, pip brings plotly.
NOT_CARRIED = {"torch", "triton", "numpy", "wandb", "numba"}


def bits(case, *differing, contender="unfused all", status="ok", **more):
    row = {"case": case, "contender": contender, "status": status, "reason": ""}
    return {**row, "different": list(differing), "tensors": 29, **more} if status == "ok" else row


def findings(rows, **more):
    return Findings("make gpu", False, [Part("bits", "", 1.0, lambda _: "")], None, CASES, rows, **more)


@pytest.mark.parametrize(
    ("rows", "status", "verdict"),
    [
        ([], NOT_SHOWN, "not measured: 0 of 2 cases measured"),
        ([bits("bits a")], NOT_SHOWN, "not shown: equal so far, 1 of 2 cases measured"),
        ([bits("bits a"), bits("bits b")], EQUAL, "bitwise equal: 2 of 2 cases measured"),
        ([bits("bits a", "loss"), bits("bits b")], DIFFER, "DIFFER: 1 settings, in bits a"),
        ([bits("bits a", "loss")], DIFFER, "DIFFER: 1 settings, in bits a"),
        ([bits("bits a"), bits("bits b"), bits("bits a, compiled", "loss")], DIFFER, "DIFFER: 1 settings"),
        ([bits("bits a"), bits("bits b", status="error")], NOT_SHOWN, "not shown: 1 settings failed; 2 of 2"),
        (  # torch's attention does not repeat itself there: nothing of it is judged
            [bits("bits a"), bits("bits b"), bits("bits b", "loss", contender="sdpa none")],
            EQUAL,
            "bitwise equal: 2 of 2 cases measured",
        ),
    ],
)
def test_the_verdict_on_bits(rows, status, verdict):
    found = findings(rows)
    assert found.bits()[0] == status
    assert found.bits()[1].startswith(verdict)
    assert found.document()["status"] == status
    assert f"- bits: {verdict}" in found.markdown()


def test_a_report_names_what_is_missing_and_what_failed(tmp_path):
    outcomes = {
        "t.py::test_a[1]": {"test": "t.py::test_a[1]", "outcome": "passed", "why": "", "seconds": 1.0},
        "t.py::test_a[2]": {"test": "t.py::test_a[2]", "outcome": "hung", "why": "60 s silent", "seconds": None},
        "t.py::test_b": {"test": "t.py::test_b", "outcome": "skipped", "why": "no room", "seconds": 0.1},
    }
    tests = [*outcomes, "t.py::test_c"]
    found = findings([bits("bits a")], tests=tests, outcomes=outcomes)
    found.write(tmp_path)
    text, document = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert "- tests: 1 passed, 1 hung, 1 skipped, 1 not run" in text
    assert "| t.py::test_a | 1 passed, 1 hung |" in text
    assert "| t.py::test_b | 1 not measured (skipped) |" in text
    assert "- t.py::test_a[2]: hung: 60 s silent" in text
    assert "- K1 s=4096: not measured: `measure 'K1 s=4096'`" in text
    assert "- bits a: not measured" not in text
    assert "| bits |  | waiting | - | - |" in text
    assert [row["case"] for row in document["not_measured"]] == ["bits b", "K1 s=4096", "bits a, compiled"]
    assert document["tests_not_run"] == ["t.py::test_c"]
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json"}


def test_lanes_take_the_most_telling_tests_first_and_keep_neighbours_together():
    training = [f"tests/training/test_optimizer.py::test_a[{number}]" for number in range(3)]
    first = [f"tests/recomputation/test_on_cuda.py::test_every_mode[{number}]" for number in range(30)]
    kernels = [f"tests/kernels/test_kernels_cuda.py::test_k[{number}]" for number in range(5)]
    made = suite.lanes(["tests/new/test_x.py::test_new", *training, *kernels, *first], 2)
    assert made == [
        [*first[:12], *first[24:], "tests/new/test_x.py::test_new"],
        [*first[12:24], *kernels, *training],
    ]
    assert suite.lanes([], 4) == []


def test_every_file_with_gpu_tests_has_a_place_in_the_order():
    assert len(suite.files()) >= 10
    assert [name for name in suite.files() if suite.priority(f"{name}::") == len(suite.ORDER)] in (
        [],
        ["tests/recomputation/test_on_cuda.py"],  # whose tests have places of their own
    )
    for prefix in suite.ORDER:
        path, _, name = prefix.partition("::")
        assert (ROOT / path).exists(), prefix
        assert not name or f"def {name}" in (ROOT / path).read_text(), prefix


def test_the_wheels_are_all_that_megaselect_needs():
    listed = {_plain(line) for line in (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines() if line[:1] != "#"}
    needed = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    waiting, seen = [_plain(text) for text in re.findall(r'"(.*?)"', needed)], set()
    while waiting:
        name = waiting.pop()
        if name in seen | NOT_CARRIED:
            continue
        seen.add(name)
        requires = importlib.metadata.requires(name) or []
        waiting += [_plain(text) for text in requires if "extra ==" not in text and "python_version <" not in text]
    assert seen <= listed


def _plain(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


@pytest.mark.skipif(source_commit() is None, reason="needs the commit of a tree under git")
def test_a_tree_without_git_has_the_commit_that_its_note_names(tmp_path):
    for folder in ("benchmarks", "megaselect", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)

    def commit():
        code = "from pathlib import Path; from benchmarks.gpu.origin import commit; print(commit(Path('.')))"
        return subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True).strip()

    assert commit() == "None"
    note = tmp_path / "origin.json"
    subprocess.run([sys.executable, "-m", "benchmarks.gpu.origin", str(note)], cwd=tmp_path, check=True)
    note.write_text(json.dumps(json.loads(note.read_text()) | {"commit": "0123456789ab"}))
    assert commit() == "0123456789ab"
    with (tmp_path / "kernels/gelu.py").open("a") as file:
        file.write("# another program\n")
    assert commit() == "None"
