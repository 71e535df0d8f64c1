"""Which backend a request gets on which device, and what an impossible request is told."""

import os
import subprocess
import sys

import pytest
import torch

from megaselect.cli.main import main
from megaselect.kernels.backend import BACKENDS, resolve_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)  # naming a device needs none


def test_the_choices():
    assert BACKENDS == ("auto", "triton", "numba", "torch")


@pytest.mark.parametrize(
    ("requested", "device", "backend"),
    [
        *(("auto", CPU, "numba"), ("numba", CPU, "numba"), ("torch", CPU, "torch")),
        *(("auto", CUDA, "triton"), ("torch", CUDA, "torch")),
    ],
)
def test_choice_by_device(requested, device, backend):
    assert resolve_backend(requested, device) == backend


def test_triton_on_a_gpu():
    assert resolve_backend("triton", CUDA) == "triton"


@pytest.mark.parametrize("requested", ["cuda", "", "Triton"])
def test_an_unknown_backend_is_named_with_the_known_ones(requested):
    with pytest.raises(ValueError, match="is not one of auto, triton, numba, torch") as error:
        resolve_backend(requested, CPU)
    assert str(error.value) == f"kernel backend {requested!r} is not one of auto, triton, numba, torch"


@pytest.mark.parametrize("requested", ["auto", "triton"])
def test_a_gpu_without_the_package_triton(requested, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what importlib takes for a package that is not there
    with pytest.raises(ValueError, match="need the package triton: install it, or use --kernel-backend torch"):
        resolve_backend(requested, CUDA)
    assert resolve_backend("torch", CUDA) == "torch"
    assert resolve_backend("auto", CPU) == "numba"


def test_numba_that_is_told_not_to_compile_is_not_used():
    command = (
        "import torch; from megaselect.kernels.backend import *; print(resolve_backend('auto', torch.device('cpu')))"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    child = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert child.stdout == "torch\n", child.stderr


def test_numba_on_a_gpu_is_refused():
    with pytest.raises(ValueError, match="do not run on device cuda: use --kernel-backend auto or torch"):
        resolve_backend("numba", CUDA)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # what importlib takes for a package that is not there
import torch
from megaselect.kernels.backend import resolve_backend
print(resolve_backend("auto", torch.device("cpu")))
try:
    resolve_backend("numba", torch.device("cpu"))
except ValueError as error:
    print(error)
from megaselect.cli.main import main
flags = ["--device", "cpu", "--wandb", "disabled", "--max-steps", "1", "--run-dir", sys.argv[1]]
small = ["--model.num-layers", "1", "--model.hidden-size", "8", "--model.num-attention-heads", "1"]
print(main(["train", "--config", "tiny", *flags, *small, "--training.eval-samples", "1"]))
"""


def test_training_without_the_package_numba(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, tmp_path / "run"], capture_output=True, text=True, timeout=600
    )
    first, refusal, *_, status = child.stdout.splitlines()
    assert (first, status) == ("torch", "0"), child.stderr
    assert refusal == "Numba's kernels need the package numba: install it, or use --kernel-backend auto or torch"


@pytest.mark.parametrize(("value", "runs"), [("1", True), ("0", False), (None, False)])
def test_triton_on_a_cpu_needs_the_interpreter(value, runs, monkeypatch):
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    if runs:
        assert resolve_backend("triton", CPU) == "triton"
    else:
        with pytest.raises(ValueError, match="do not run on device cpu: use --kernel-backend torch or auto"):
            resolve_backend("triton", CPU)


CHILD = """
import torch
from megaselect.kernels.bias_dropout_residual import bias_dropout_residual
from megaselect.kernels.dropout_mask import Plane
from megaselect.kernels.softmax_dropout import softmax_dropout_value
samples, plane = torch.tensor([0]), Plane(0, 0, 26)
scores, value, hidden = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 4), torch.ones(2, 1, 4)
form = {"save_probs": True, "save_mask": True}
for backend in ("auto", "triton"):
    for call in (
        lambda: softmax_dropout_value(scores, value, samples, plane, **form, backend=backend),
        lambda: bias_dropout_residual(hidden, None, None, samples, plane, save_mask=True, backend=backend),
    ):
        try:
            print(tuple(call().shape))
        except ValueError as error:
            print(error)
"""


def test_the_ops_refuse_triton_on_a_cpu_in_a_process_of_their_own():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    refusal = (
        "Triton kernels do not run on device cpu: use --kernel-backend torch or auto "
        "(or set TRITON_INTERPRET=1 to run them slowly in Triton's interpreter, in fp32 or fp16)"
    )
    assert child.stdout.splitlines() == ["(2, 1, 4)", "(2, 1, 4)", refusal, refusal]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_interpreter_is_refused_in_bf16_alone(dtype, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend("auto", CPU, dtype) == ("torch" if dtype == torch.float16 else "numba")
    if dtype != torch.bfloat16:
        assert resolve_backend("triton", CPU, dtype) == "triton"
        return
    with pytest.raises(ValueError, match="wrongly in bf16: use --dtype fp32 or fp16, or --kernel-backend torch"):
        resolve_backend("triton", CPU, dtype)


def test_train_refuses_the_interpreter_in_bf16_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    flags = ["--device", "cpu", "--kernel-backend", "triton", "--dtype", "bf16", "--wandb", "disabled"]
    assert main(["train", "--config", "tiny", *flags, "--run-dir", str(tmp_path / "run")]) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("error: Triton's interpreter (TRITON_INTERPRET=1) computes wrongly in bf16: use ")
    assert len(errors.splitlines()) == 1
    assert output == ""
    assert not (tmp_path / "run").exists()
