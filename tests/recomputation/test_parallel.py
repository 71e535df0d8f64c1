"""Two processes: within a layout every mode gives the same bits, and every layout what one process gives."""

import functools
import time

import parallel_ranks
import pytest
import torch
from parallel_ranks import ATTENTION, BATCH, PLANS, RANKS, SHARDED_MODES, TENSOR_MODES, TIMEOUT, one_process
from torch import distributed, multiprocessing

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch is built without gloo")

# Splitting a product or a batch changes the order of sums alone, which is an epsilon or two an op over some tens of ops
# in a row; ten times less is what shows.
BOUNDS = {dtype: 40 * torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """{case: trace} of every rank."""
    folder = tmp_path_factory.mktemp("ranks")
    # Port 0: the system picks a free one, and it stays taken.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    ranks = multiprocessing.spawn(parallel_ranks.run_rank, (store.port, folder), nprocs=RANKS, join=False)
    try:
        end = time.monotonic() + TIMEOUT.total_seconds()
        while not ranks.join(timeout=max(end - time.monotonic(), 0)):  # returns when any rank has ended
            assert time.monotonic() < end, f"a rank has not ended within {TIMEOUT}"
    finally:
        for process in ranks.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


single = functools.cache(one_process)


def different(actual, expected):
    assert actual.keys() == expected.keys()
    return [name for name in expected if not torch.equal(actual[name], expected[name])]


def errors_above(bound, actual, expected, relative_error):
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    return {name: error for name, error in errors.items() if not error < bound}


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("plan", PLANS)
class TestTensorParallel:
    @pytest.mark.parametrize("mode", TENSOR_MODES[1:])
    def test_every_mode_gives_the_same_bits(self, traces, plan, mode, attention):
        for trace in traces:
            none = trace["tensor", plan, "none", attention, torch.float32]
            assert different(trace["tensor", plan, mode, attention, torch.float32], none) == []

    @pytest.mark.parametrize("dtype", BOUNDS)
    def test_it_is_what_one_process_gives(self, traces, plan, attention, dtype, relative_error):
        for trace in traces:
            actual, expected = trace["tensor", plan, "none", attention, dtype], single("none", attention, dtype, BATCH)
            assert errors_above(BOUNDS[dtype], actual, expected, relative_error) == {}


@pytest.mark.parametrize("attention", ATTENTION)
class TestFullySharded:
    @pytest.mark.parametrize("mode", SHARDED_MODES[1:])
    def test_every_mode_gives_the_same_bits(self, traces, mode, attention):
        for trace in traces:
            none = trace["sharded", "none", attention, torch.float32]
            assert different(trace["sharded", mode, attention, torch.float32], none) == []

    @pytest.mark.parametrize("dtype", BOUNDS)
    def test_it_is_what_one_process_gives(self, traces, attention, dtype, relative_error):
        for trace in traces:
            actual, expected = trace["sharded", "none", attention, dtype], single("none", attention, dtype, 2 * BATCH)
            assert errors_above(BOUNDS[dtype], actual, expected, relative_error) == {}

    def test_the_ranks_agree(self, traces, attention):
        for mode in SHARDED_MODES:
            assert different(*(trace["sharded", mode, attention, torch.float32] for trace in traces)) == []
