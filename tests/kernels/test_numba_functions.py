"""What Numba compiles: exp2, rows that are not finite, threads, forks, and where there is no place for its cache."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from megaselect.kernels import numba_functions, softmax_dropout_numba
from megaselect.kernels.cpu_threads import in_parts
from megaselect.kernels.dropout_mask import Plane, keep_planes

PLANE = Plane(2**64 - 3, 5, 26)
SAMPLES = torch.tensor([3, 2**32 - 1])
DTYPES = [torch.float32, torch.bfloat16]


def exponentials(values):
    """exp of a row below its highest value, as softmax takes it."""
    row = np.array(values, np.float32)
    numba_functions._exponentials_(row, np.float32(0))
    return row


def test_exp2_is_within_two_units_in_the_last_place():
    exponents = -np.random.default_rng(3).uniform(0, 86, 200_000).astype(np.float32)
    powers = exponents * np.float32(np.log2(np.e))  # rounded: what exp2 gets
    exact = np.exp2(powers.astype(np.float64))
    assert np.max(np.abs(exponentials(exponents) - exact) / np.spacing(exact.astype(np.float32))) <= 2


def test_exp2_of_what_is_far_away_or_not_finite():
    assert exponentials([0.0])[0] == 1
    assert exponentials([-np.inf, -1e30, -90.0]).tolist() == [0, 0, 0]
    assert np.isnan(exponentials([np.nan]))[0]


def run(scores, threshold=26):
    plane = PLANE._replace(threshold=threshold)
    return softmax_dropout_numba.forward(scores, SAMPLES[: scores.shape[0]], plane, True, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 16, 20])
def test_a_row_with_nan_or_infinity_is_nan_and_no_other(value, column, dtype):
    scores = torch.randn(1, 1, 40, 40).to(dtype)
    scores[0, 0, 30, column] = value
    probs = run(scores, threshold=0)[0][0, 0]
    assert probs[30, :31].isnan().all()
    assert not probs[30, 31:].any()
    probs[30] = 0
    assert probs.isfinite().all()


def test_a_row_of_minus_infinity_is_zero():
    scores = torch.full((1, 1, 20, 20), -torch.inf)
    dropped, row_max, inverse_sum, probs, _ = run(scores)
    for each in (dropped, row_max, inverse_sum, probs):
        assert not each.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bf16_is_rounded_as_torch_rounds(dtype):
    scores = (4 * torch.randn(2, 3, 33, 33)).to(dtype)
    wide = run(scores.float())[3]
    assert torch.equal(run(scores)[3], wide.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_threads_gives_the_same_bits(dtype):
    scores, grad = ((4 * torch.randn(2, 5, 130, 130)).to(dtype) for _ in "sg")
    delta, empty, mask = torch.randn(2, 5, 130), scores.new_empty(0), torch.empty(0, dtype=torch.int8)
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            dropped, row_max, inverse_sum, *kept = run(scores)
            saved = {"scores": scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": empty, "mask": mask}
            grads = softmax_dropout_numba.backward(grad.clone(), delta, SAMPLES, PLANE, **saved, write_dropped=True)
            found.append([dropped, row_max, inverse_sum, *kept, *grads, keep_planes(SAMPLES, PLANE, 5, 130, 130)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_parts_cover_every_plane_once_and_hand_on_what_they_raise():
    seen = []
    in_parts(7, 1 << 20, lambda start, stop: seen.extend(range(start, stop)))
    assert sorted(seen) == list(range(7))

    def refuse(start, stop):
        raise ArithmeticError(f"part {start}")

    with pytest.raises(ArithmeticError, match="part"):
        in_parts(7, 1 << 20, refuse)


def in_a_fork(connection, scores):
    connection.send([each.numpy() for each in run(scores)])


def test_a_fork_of_a_process_that_has_used_threads():
    scores, threads = torch.randn(2, 5, 130, 130), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        wanted = run(scores)
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=in_a_fork, args=(theirs, scores))
        child.start()
        assert ours.poll(60), "the fork waits for threads that it does not have"
        found = ours.recv()
        child.join()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(torch.from_numpy(one), two) for one, two in zip(found, wanted, strict=True))


ANY_CPU = """
import hashlib, torch
from megaselect.kernels import softmax_dropout_numba
from megaselect.kernels.dropout_mask import Plane
generator = torch.Generator().manual_seed(3)
scores, grad = (4 * torch.randn(2, 3, 130, 130, generator=generator) for _ in "sg")
samples, plane, empty = torch.tensor([3, 4]), Plane(2**64 - 3, 5, 26), scores.new_empty(0)
found = softmax_dropout_numba.forward(scores, samples, plane, True, True)
_, row_max, inverse_sum, *_ = found
saved = {"scores": scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": empty, "mask": empty.to(torch.int8)}
found += softmax_dropout_numba.backward(grad, row_max, samples, plane, **saved, write_dropped=True)
print(hashlib.sha256(b"".join(each.numpy().tobytes() for each in found)).hexdigest())
"""


@pytest.mark.soak
def test_a_cpu_without_vectors_of_eight_and_fused_products_gives_the_same_bits():
    """What Numba is told to compile for: any x86-64, or any ARM."""
    found = []
    for variables in ({}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}):
        command = [sys.executable, "-c", ANY_CPU]
        child = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=600)
        assert child.returncode == 0, child.stderr
        found.append(child.stdout)
    assert found[0] == found[1]


NO_CACHE = """
import torch
from megaselect.kernels.dropout_mask import Plane, keep_planes
print(int((keep_planes(torch.tensor([1]), Plane(3, 5, 26), 1, 100, 100) == 0).sum()))
"""


@pytest.mark.soak
def test_without_a_place_for_the_cache_it_compiles_anew():
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    child = subprocess.run(
        [sys.executable, "-c", NO_CACHE], env=environment, capture_output=True, text=True, timeout=600
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) == int((keep_planes(torch.tensor([1]), Plane(3, 5, 26), 1, 100, 100) == 0).sum())
