"""The wheel works away from the source tree, its requirements are pinned, and make installs when it must."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes, message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")
needs_make = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of what it is made of, so that the source tree stays clean."""
    directory = tmp_path_factory.mktemp("wheel")
    tree = directory / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("megaselect", "kernels", "configs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(tree))
    return next(directory.glob("*.whl"))


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def sources(directory: str, pattern: str) -> set[str]:
    return {path.relative_to(ROOT / directory).as_posix() for path in (ROOT / directory).rglob(pattern)}


def test_the_wheel_holds_the_package_the_kernels_and_the_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    kernels = {f"megaselect/kernels/{name}" for name in sources("kernels", "*.py")}
    configs = {f"megaselect/configs/{name}" for name in sources("configs", "*.yaml")}
    package = {f"megaselect/{name}" for name in sources("megaselect", "*.py") if not name.startswith("kernels/")}
    assert len(kernels) > 1
    assert "megaselect/configs/tiny.yaml" in configs
    page = {f"megaselect/{name}" for pattern in ("*.css", "*.js") for name in sources("megaselect", pattern)}
    assert page == {"megaselect/report/compare_page.css", "megaselect/report/compare_page.js"}
    assert names == kernels | configs | package | page | {"megaselect/py.typed"}


def test_the_wheel_says_what_it_is_and_under_which_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {Path(name).name: archive.read(name) for name in archive.namelist() if ".dist-info/" in name}
    described = message_from_string(found["METADATA"].decode())
    assert found["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert described["License-Expression"] == "Apache-2.0"
    assert described["Description-Content-Type"] == "text/markdown"
    assert described.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert "activation checkpointing" in described["Keywords"]
    tested = {line.split()[1] for line in (ROOT / "torch-versions.txt").read_text().splitlines() if line[0] != "#"}
    named = {entry.rpartition(" :: ")[2] for entry in described.get_all("Classifier") if "Python :: 3." in entry}
    assert tested == named


def test_the_installed_wheel_works_away_from_the_source_tree(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    # The dependencies come from the Python that runs the tests. A path in a .pth file is searched after the new
    # environment's own packages, and its own .pth files, an editable install's among them, are not read.
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True)
    Path(own.stdout.decode().strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import megaselect, megaselect.kernels.dropout_mask as mask\n"
        "from megaselect.cli.train import parse_train_args\n"
        "print(megaselect.__file__); print(mask.__file__); print(mask.drop_threshold(0.1))\n"
        "for name in ('tiny', 'gpt2-124m'): print(parse_train_args(['--config', name]).config_path)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    child = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert child.stderr == ""
    package = Path(own.stdout.decode().strip()).relative_to(tmp_path) / "megaselect"
    installed = [package / name for name in ("__init__.py", "kernels/dropout_mask.py")]
    configs = [package / "configs" / name for name in ("tiny.yaml", "gpt2-124m.yaml")]
    lines = child.stdout.splitlines()
    assert lines == [*(str(tmp_path / path) for path in installed), "26", *map(str, configs)]
    script = [tmp_path / "venv/bin/megaselect", "train", "--config", "gpt2", "--debug"]
    child = subprocess.run(script[:-1], cwd=tmp_path, env=environment, capture_output=True, text=True)
    shipped = ", ".join(sorted(name.removesuffix(".yaml") for name in sources("configs", "*.yaml")))
    message = f"error: --config gpt2: no such file; the shipped configs are {shipped}\n"
    assert (child.returncode, child.stdout, child.stderr) == (2, "", message)


def test_what_is_said_elsewhere_of_versions_is_so():
    assert f"rev: v{pins()['ruff']}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
    own = re.search(r'^__version__ = "(.+)"$', (ROOT / "megaselect/__init__.py").read_text(), re.MULTILINE)[1]
    assert f"\nversion: {own}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {own} " in (ROOT / "CHANGELOG.md").read_text()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pinned.items()}


def requirements(wheel: Path, extra: str) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    found = [Requirement(line) for line in lines]
    return [entry for entry in found if entry.marker is None or entry.marker.evaluate({"extra": extra})]


def test_every_requirement_is_pinned_to_a_version_in_its_range(wheel):
    pinned = pins()
    for entry in requirements(wheel, "dev"):
        assert entry.specifier.contains(pinned[canonicalize_name(entry.name)]), entry


def test_pins_have_no_build_tags_that_only_one_machine_could_install():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), line


def closure(direct: list[Requirement]) -> set[str]:
    """Names of everything that the requirements bring, as the installed packages declare it."""
    visited: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(entry.name), extra) for entry in direct for extra in ("", *entry.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in visited:
            continue
        visited.add((name, extra))
        for entry in map(Requirement, metadata.requires(name) or []):
            if entry.marker is None or entry.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(entry.name), wanted) for wanted in ("", *entry.extras)]
    return {name for name, _ in visited}


@pytest.mark.skipif(sys.platform != "linux", reason="triton is pinned, and exists on Linux only")
def test_pins_are_what_the_requirements_bring_and_nothing_else(wheel):
    pinned, direct = pins(), requirements(wheel, "test")
    for entry in direct:
        if metadata.version(entry.name).partition("+")[0] != pinned[canonicalize_name(entry.name)]:
            pytest.skip(f"{entry.name} {metadata.version(entry.name)} is installed, not the version that is pinned")
    brought = {name for name in closure(direct) if not name.startswith(("nvidia-", "cuda-"))}  # a CUDA build's own pins
    assert set(pinned) == brought | {"build", "pyproject-hooks"}


@pytest.fixture
def tree(tmp_path) -> Path:
    """A tree with the real Makefile, and an environment in it that counts as fully installed."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in (".python", ".train-installed", ".test-installed"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def make(tree: Path, *arguments: str, path: str = os.environ["PATH"]) -> tuple[int, str, str]:
    environment = {"PATH": path, "LC_ALL": "C"}
    child = subprocess.run([MAKE, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    return child.returncode, child.stdout, child.stderr


@needs_make
def test_make_runs_without_installing_where_nothing_changed(tree):
    assert (
        make(tree, "-n", "train", "ARGS=--max-steps 10")[1]
        == ".venv/bin/python train.py --recompute selective --max-steps 10\n"
    )
    assert make(tree, "-n", "test")[1].splitlines() == [
        ".venv/bin/python -m ruff check .",
        ".venv/bin/python -m ruff format --check .",
        ".venv/bin/python -c 'from importlinter.cli import lint_imports_command as lint; lint()'",
        ".venv/bin/python -m mypy",
        'PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -m "not soak"  ',
    ]


PARALLEL = "--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder"


@needs_make
@pytest.mark.parametrize(("status", "workers"), [(0, PARALLEL), (1, "")])
def test_make_tests_in_parallel_where_it_can(tree, status, workers):
    python = tree / "python"
    python.write_text(f"#!/bin/sh\n[ \"$*\" = '-c import xdist' ] && exit {status}\n")
    python.chmod(0o755)
    last = make(tree, "-n", "test", f"PY={python}", "ARGS=-x")[1].splitlines()[-1]
    assert last == f'PYTHONDONTWRITEBYTECODE= {python} -m pytest -m "not soak" {workers} -x'


@needs_make
@pytest.mark.parametrize("changed", ["setup.py", "constraints.txt", "pyproject.toml"])
def test_make_installs_again_where_the_requirements_changed(tree, changed):
    newer = (tree / ".venv/.test-installed").stat().st_mtime + 5
    os.utime(tree / changed, (newer, newer))
    installs = re.findall(r"pip install .*--editable (\S+)", make(tree, "-n", "test")[1])
    assert installs == ["'.[report]'", "'.[test]'"]
    output = make(tree, "-n", "train")[1]
    assert re.findall(r"pip install .*--editable (\S+)", output) == ["'.[report]'"]
    assert "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in output
    assert "-m venv" not in output


@needs_make
def test_make_starts_over_where_the_environment_is_half_made(tree):
    for name in (".python", ".train-installed"):
        (tree / ".venv" / name).unlink()
    assert "-m venv --clear .venv" in make(tree, "-n", "train")[1]


@needs_make
def test_make_with_py_uses_that_python_and_installs_nothing(tree):
    shutil.rmtree(tree / ".venv")
    assert make(tree, "-n", "soak", "PY=python3")[1] == "python3 -m pytest -m soak \n"
    assert make(tree, "-n", "train", "PY=python3")[1] == "python3 train.py --recompute selective \n"


@needs_make
def test_make_says_which_python_it_needs(tree):
    shutil.rmtree(tree / ".venv")
    tools = tree / "tools"
    tools.mkdir()
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, out, err = make(tree, "train", path=str(tools))
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: Megaselect needs Python 3.11 or newer, and no python3 here is; install one, or name it with PY=\n"
    )
    assert not (tree / ".venv").exists()


@needs_make
def test_make_names_the_package_that_brings_ensurepip(tree):
    shutil.rmtree(tree / ".venv")
    (tree / "blocked").mkdir()
    (tree / "blocked/ensurepip.py").write_text("raise ImportError\n")
    tools = tree / "tools"
    tools.mkdir()
    bare = tools / "python3"
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tree}/blocked exec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    code, out, err = make(tree, "train", path=str(tools))
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    assert (code, out) == (2, "")
    assert err.startswith(
        f"error: python3 cannot make virtual environments; on Debian and Ubuntu: apt-get install {package}\n"
    )
