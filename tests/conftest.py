"""What all tests share: one thread, one seed, Triton's interpreter and no GPU tests without a GPU, saved tensors."""

import gc
import os
import signal
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it once, when it is imported; torch alone does not import it

# importlib mode leaves test folders off it: mask_reference and turns
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("kernels", "parameters")]


def pytest_configure():
    torch.set_num_threads(1)  # threads would wait for each other over tensors this small, and for other workers' tests
    # A suite in the background (`&`, nohup) ignores these, and so would every child that a test sends one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with suppress(ImportError):  # a GPU's image has no hypothesis, and the tests that it runs need none
        from hypothesis import HealthCheck, settings

        # A machine with other work is no mistake of the code: no example is refused for how long it took.
        settings.register_profile("megaselect", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("megaselect")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules and tests are some million objects that stay: looking through them for garbage only takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Before the fixtures: what a test draws depends on no other test, nor on the worker that runs it."""
    torch.manual_seed(0)


def pytest_make_parametrize_id(val, argname):
    """Bytes name no test: gzip's hold the time, and pytest-xdist's workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    _sort_by_length(items)
    from megaselect.devices import missing_for_compile

    missing = missing_for_compile(torch.device("cpu"))
    if missing:
        for item in items:
            if item.get_closest_marker("compiles"):
                item.add_marker(pytest.mark.skip(reason=f"torch.compile on a CPU needs {missing}"))
    if HAS_CUDA:
        return
    no_gpu = pytest.mark.skip(reason=f"needs an NVIDIA GPU and torch {torch.__version__} sees none")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(no_gpu)


def _sort_by_length(items):
    """Files of few tests first: those start processes and take long, and the last one would leave workers idle."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])  # stable: files of equally many tests stay whole


@contextmanager
def _record_saved():
    saved = []

    def record(tensor):
        if tensor.numel():
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        yield saved


@pytest.fixture
def record_saved():
    """`with record_saved() as saved:` lists every tensor that autograd saves for backward, but for empty ones."""
    return _record_saved


def _relative_error(actual, exact):
    return ((actual.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.fixture
def relative_error():
    """|actual - exact| / |exact|, both taken in fp64."""
    return _relative_error


def _peak_bytes(function):
    function()  # what only a first call allocates is no part of it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.fixture
def peak_bytes():
    """peak_bytes(function): the most that a call of `function` held at a time of what torch's CPU allocator gave it."""
    return _peak_bytes
