"""Small runs of the trainer: as child processes of train.py, and in this process through megaselect's main."""

import io
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from megaselect.cli.main import main
from megaselect.config import Config
from megaselect.data.indexed_dataset import IndexedDatasetWriter

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it: shortage
from forked_runs import RunServer

ROOT = Path(__file__).parents[2]
VOCABULARY = 256
SMALL_RUN = (
    *("--model.num-layers", "2", "--model.hidden-size", "32", "--model.num-attention-heads", "4"),
    *("--model.seq-length", "16", "--training.micro-batch-size", "2", "--training.global-batch-size", "4"),
    *("--training.warmup-steps", "2", "--training.eval-interval", "3", "--training.eval-samples", "4"),
)


@pytest.fixture(scope="session")
def child_environment():
    """This process's environment, with one thread and nothing that would tell wandb of a key or a mode."""
    names = (name for name in os.environ if not name.startswith("WANDB_"))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {name: os.environ[name] for name in names} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


@pytest.fixture(scope="session")
def server(child_environment):
    """Forks a process for a run, where what a process of its own would import first is not what is tested."""
    with RunServer(child_environment) as server:
        yield server


@pytest.fixture(scope="session")
def child_command():
    """The command line of a small run of train.py."""
    return lambda *flags: [sys.executable, str(ROOT / "train.py"), *SMALL_RUN, *map(str, flags)]


@pytest.fixture(scope="session")
def run_child(child_environment, child_command):
    """`run_child(*flags, **more)` runs train.py to its end."""

    def run(*flags, **more):
        environment = child_environment | more.pop("extra_environment", {})
        options = {"stdin": subprocess.DEVNULL, **more}
        command = child_command("--wandb", "disabled", *flags)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **options)

    return run


@pytest.fixture(scope="session")
def run_main(child_command):
    """`run_main(*flags)` is run_child in this process, which has imported already what a child takes seconds for."""

    def run(*flags):
        arguments = ["train", *child_command("--wandb", "disabled", *flags)[2:]]
        with pytest.MonkeyPatch.context() as patch:
            forget_wandb(patch)
            with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


def forget_wandb(patch):
    """Nothing in the environment tells wandb of a key or a mode."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)


@pytest.fixture
def without_wandb(monkeypatch):
    """forget_wandb, while the test runs."""
    forget_wandb(monkeypatch)


@pytest.fixture(scope="session")
def write_dataset():
    """`write_dataset(prefix, tokens)` writes an indexed dataset of one random document."""

    def write(prefix, tokens, vocabulary=VOCABULARY):
        writer = IndexedDatasetWriter(prefix, vocabulary)
        writer.add_document(np.random.default_rng(0).integers(0, vocabulary, tokens).tolist())
        writer.finish()
        return prefix

    return write


@pytest.fixture(scope="session")
def dataset(write_dataset, tmp_path_factory):
    """Prefix of 4,000 random tokens."""
    return write_dataset(tmp_path_factory.mktemp("data") / "tokens", 4000)


@pytest.fixture(scope="session")
def small_flags(dataset):
    """A small run on random tokens, without the command's name."""
    return (
        *SMALL_RUN,
        *("--data.prefix", str(dataset), "--model.vocab-size", str(VOCABULARY)),
        *("--training.schedule", "constant", "--wandb", "disabled"),
    )


@pytest.fixture
def run_here(small_flags, monkeypatch):
    """`run_here(*flags)` trains in this process and returns the exit code."""
    forget_wandb(monkeypatch)
    return lambda *flags: main(["train", *small_flags, *map(str, flags)])


@pytest.fixture(scope="session")
def read_metrics():
    """The objects of a run's metrics.jsonl."""
    return lambda run_dir: [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def read_tensors():
    """`read_tensors(run_dir, step)`: all tensors of a checkpoint, those of the optimizer under their own names."""

    def read(run_dir, step):
        home = run_dir / "checkpoints" / f"step-{step:08d}"
        return load_file(home / "model.safetensors") | load_file(home / "optimizer.safetensors")

    return read


@pytest.fixture
def assert_same_run(read_metrics, read_tensors):
    """Same losses, gradient norms and final tensors, to the bit, and each step once."""

    def check(run_dir, expected_dir, steps=8):
        metrics, expected = read_metrics(run_dir), read_metrics(expected_dir)
        assert [line["step"] for line in metrics] == list(range(1, steps + 1))
        for name in ("loss", "grad_norm", "lr", "samples", "tokens"):
            assert [line[name] for line in metrics] == [line[name] for line in expected[:steps]]
        tensors, expected = read_tensors(run_dir, steps), read_tensors(expected_dir, steps)
        assert tensors.keys() == expected.keys()
        assert [name for name in tensors if not tensors[name].equal(expected[name])] == []
        assert all(tensors[name].dtype == expected[name].dtype for name in tensors)

    return check


@pytest.fixture(scope="session")
def make_config():
    """`make_config(**overrides of dotted names with __ for the dot)`: the small run as a Config."""

    def make(**overrides):
        mapping = {
            "model": {
                "num_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "seq_length": 16,
                "vocab_size": VOCABULARY,
            },
            "training": {"micro_batch_size": 2, "global_batch_size": 4, "max_steps": 6, "device": "cpu"},
        }
        return Config.from_dict(mapping, "test", {name.replace("__", "."): value for name, value in overrides.items()})

    return make


@pytest.fixture
def no_room():
    """`with no_room():` no file can grow, as on a full disk, though the system says that it is too large."""

    @contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
