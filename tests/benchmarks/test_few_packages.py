"""A machine with a GPU may have torch, Triton and NumPy alone: with the carried wheels all runs there, else it is told.

Every script is a process that sees only what those three bring of the packages here; the wheels are made of the others.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
RUN, GROWTH, PAGE = "benchmarks/run.py", "benchmarks/memory_growth.py", "benchmarks/not_measured.py"
QUICK = ("--device", "cpu", "--json", "--rounds", "1", "--seconds", "0.05")
REFUSAL = (
    "error: this Python lacks pydantic PyYAML: python -m pip install pydantic PyYAML; where there is no network, bring "
    "wheels from make gpu-wheels (docs/gpu.md)"
)
INSTALL = """
import sys
from pathlib import Path
from benchmarks.gpu.carried import install
print(install(*map(Path, sys.argv[1:])))
"""


def brought_by(*names):
    """Names of these packages and of all that they require."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            required = [Requirement(line) for line in metadata.requires(name) or []]
            waiting += [item.name for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    return found


def own_files(name):
    """A package's files, relative to the folder of all packages; no scripts and no caches."""
    return [file for file in metadata.files(name) if file.parts[0] != ".." and file.suffix != ".pyc"]


def python(path, *arguments, cwd=ROOT):
    """A process without any package but those in the folders of `path`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-S", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of packages: torch, Triton and NumPy, and what they bring."""
    folder = tmp_path_factory.mktemp("bare")
    for name in brought_by("torch", "triton", "numpy"):
        packages = metadata.distribution(name).locate_file("")
        for top in {file.parts[0] for file in own_files(name)}:
            if not (folder / top).exists():  # several packages may share a namespace
                (folder / top).symlink_to(packages / top)
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """What `make gpu-wheels` downloads, for this Python."""
    folder = tmp_path_factory.mktemp("wheels")
    for line in (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines():
        if not line.startswith("#"):
            package = metadata.distribution(line)
            tag = package.read_text("WHEEL").rpartition("Tag: ")[2].split()[0]  # of several, such as py2 and py3
            file = f"{line.replace('-', '_')}-{package.version}-{tag}.whl"
            with zipfile.ZipFile(folder / file, "w") as wheel:
                for part in own_files(line):
                    wheel.write(part.locate(), str(part))
    return folder


@pytest.mark.parametrize("script", [[RUN, "headline"], [RUN, "kernels", "--list"], [GROWTH], [PAGE]], ids=" ".join)
def test_a_script_without_packages_names_them_in_one_line(bare, script):
    done = python([bare], *script)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{REFUSAL}\n")


def test_help_needs_no_package():
    done = python([], RUN, "step", "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gpu_run_without_wheels_names_them_in_one_line(bare, tmp_path):
    for name in ("benchmarks", "megaselect"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    done = python([bare], "-m", "benchmarks.gpu", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{REFUSAL} (no wheels in ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def run(bare, wheels, tmp_path_factory):
    """run(*script): what a script prints that has the carried wheels too."""
    carried = tmp_path_factory.mktemp("carried") / "packages"
    done = python([bare], "-c", INSTALL, carried, wheels)
    assert done.stdout == f"{len(list(wheels.iterdir()))} carried wheels\n", done.stderr  # and nothing is missing

    def run(*script):
        done = python([carried, bare], *script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_models_train_with_the_carried_wheels_and_what_lacks_a_package_is_skipped(run, runner):
    few = ("--config", runner.config, "--attention", "unfused", "fused", "--recompute", "none", "all")
    rows = json.loads(run(RUN, "baselines", *few, *QUICK, "--baseline", "plain", "huggingface", "megatron"))["rows"]
    skipped = {row["contender"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert skipped == {
        "huggingface": "ModuleNotFoundError: No module named 'transformers'",
        "megatron": "ModuleNotFoundError: No module named 'megatron'",
    }
    assert {row["status"] for row in rows} == {"ok", "skipped"}


# The others take seconds each; `make gpu DRY=1` runs them in such an environment as well.
@pytest.mark.soak
def test_memory_growth_is_measured_with_the_carried_wheels(run, runner):
    growth = run(GROWTH, "--config", runner.config, "--steps", "4", "--device", "cpu")
    assert "unfused selective: " in growth
    assert "not judged below 40 steps" in growth


@pytest.mark.soak
def test_the_page_is_made_with_the_carried_wheels(run):
    assert run(PAGE).startswith("# Not measured on a GPU")


@pytest.mark.soak
def test_kernels_are_measured_with_the_carried_wheels(run):
    kernels = json.loads(run(RUN, "kernels", "--seq", "16", "--head-size", "16", "--dropout", "0.1", *QUICK))
    assert {row["status"] for row in kernels["rows"]} == {"ok"}


@pytest.mark.soak
def test_the_headline_is_judged_with_the_carried_wheels(run):
    headline = json.loads(run(RUN, "headline", *QUICK, "--case", "bits fp32 d=64 s=128 b=1"))
    assert {row["status"] for row in headline["rows"]} == {"ok"}
