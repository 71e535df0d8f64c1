"""The same batches as without a thread, in any order; errors where they belong; and a thread that ends."""

import signal
import threading

import pytest
import torch

from megaselect.data.prefetch import Prefetcher
from megaselect.data.sampler import TokenSource
from megaselect.errors import DataError

PATIENCE_SECONDS = 600


@pytest.fixture
def source(write_tokens):
    return TokenSource(write_tokens("text", range(1003)), 8, 1234)


def assert_same(got, expected):
    for name in ("tokens", "targets", "sample_index"):
        assert torch.equal(getattr(got, name), getattr(expected, name))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("megaselect-prefetch")]


class Watched:
    """A source that tells which batches it was asked for, and by which thread; `on_read` may get in the way."""

    def __init__(self, source, on_read=lambda first: None):
        self.source, self.on_read = source, on_read
        self.asked, self.changed = [], threading.Condition()
        self.readers = set()

    def batch(self, first_sample_index, micro_batch_size):
        with self.changed:
            self.asked.append((first_sample_index, micro_batch_size))
            self.readers.add(threading.current_thread())
            self.changed.notify()
        self.on_read(first_sample_index)
        return self.source.batch(first_sample_index, micro_batch_size)

    def wait_for(self, expected):
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked == expected, PATIENCE_SECONDS), self.asked


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_batches_are_those_of_the_source(source, depth):
    """In order, then a step again, another size, a jump back, and on from there: what resuming and retrying ask for."""
    asked = [(4 * i, 4) for i in range(20)] + [(72, 4), (72, 4), (72, 2), (74, 2), (0, 4), (4, 4), (8, 4), (1000, 7)]
    with Prefetcher(source, depth) as prefetcher:
        for first, size in asked:
            assert_same(prefetcher.batch(first, size), source.batch(first, size))


def test_the_thread_reads_as_far_ahead_as_it_is_told(source):
    watched = Watched(source)
    with Prefetcher(watched, 3) as prefetcher:
        prefetcher.batch(10, 2)
        watched.wait_for([(10, 2), (12, 2), (14, 2), (16, 2)])
        prefetcher.batch(12, 2)
        watched.wait_for([(10, 2), (12, 2), (14, 2), (16, 2), (18, 2)])
    assert threading.current_thread() not in watched.readers


def test_depth_0_reads_what_is_asked_for_in_the_callers_thread(source):
    watched = Watched(source)
    with Prefetcher(watched, 0) as prefetcher:
        prefetcher.batch(10, 2)
    assert watched.asked == [(10, 2)]
    assert watched.readers == {threading.current_thread()}


def refuse_from(index):
    def on_read(first):
        if first >= index:
            raise DataError(f"sample {first}")

    return on_read


def test_an_error_is_raised_at_its_batch_and_not_earlier(source):
    watched = Watched(source, refuse_from(6))
    with Prefetcher(watched, 2) as prefetcher:
        for first in (0, 2, 4):
            assert_same(prefetcher.batch(first, 2), source.batch(first, 2))
        watched.wait_for([(0, 2), (2, 2), (4, 2), (6, 2), (8, 2)])
        with pytest.raises(DataError, match="sample 6"):
            prefetcher.batch(6, 2)
        with pytest.raises(DataError, match="sample 8"):
            prefetcher.batch(8, 2)
        assert_same(prefetcher.batch(4, 2), source.batch(4, 2))


def test_an_error_ahead_of_the_last_batch_is_nobodys(source):
    watched = Watched(source, refuse_from(2))
    with Prefetcher(watched, 2) as prefetcher:
        assert_same(prefetcher.batch(0, 2), source.batch(0, 2))
        watched.wait_for([(0, 2), (2, 2), (4, 2)])


def test_close_ends_the_thread_and_may_come_twice(source):
    prefetcher = Prefetcher(source, 2)
    prefetcher.batch(0, 2)
    assert len(threads()) == 1
    prefetcher.close()
    prefetcher.close()
    assert threads() == []
    with pytest.raises(RuntimeError, match="after shutdown"):
        prefetcher.batch(2, 2)


def test_an_exception_in_training_ends_the_thread(source):
    reading, go_on = threading.Event(), threading.Event()

    def hold(first):
        if first == 2:
            reading.set()
            assert go_on.wait(PATIENCE_SECONDS)

    def train():
        with Prefetcher(Watched(source, hold), 2) as prefetcher:
            prefetcher.batch(0, 2)
            assert reading.wait(PATIENCE_SECONDS)
            go_on.set()
            raise ValueError("training")

    with pytest.raises(ValueError, match="training"):
        train()
    assert threads() == []


def test_an_interrupted_wait_leaves_a_prefetcher_that_works(source):
    interrupted = []

    def interrupt(first):
        if not interrupted:
            interrupted.append(first)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with Prefetcher(Watched(source, interrupt), 2) as prefetcher:
        with pytest.raises(KeyboardInterrupt):
            list(map(prefetcher.batch, (0, 2, 4), (2, 2, 2)))
        for first in (0, 2, 4):
            assert_same(prefetcher.batch(first, 2), source.batch(first, 2))
    for thread in threads():  # one that was interrupted in its start is told to end, but `close` does not know of it
        thread.join(PATIENCE_SECONDS)
    assert threads() == []


LEAVE_IT_OPEN = """
import sys, torch
from megaselect.data.prefetch import Prefetcher
from megaselect.data.sampler import Batch
class Source:
    def batch(self, first, size):
        return Batch(*[torch.arange(first, first + size)] * 3)
prefetcher = Prefetcher(Source(), 100)
print(prefetcher.batch(0, 2).tokens.tolist(), flush=True)
raise SystemExit(7)
"""


def test_a_process_that_never_closes_it_still_ends(start_python):
    child = start_python(LEAVE_IT_OPEN)
    out, err = child.communicate(timeout=PATIENCE_SECONDS)
    assert (out, err, child.returncode) == ("[0, 1]\n", "", 7)


@pytest.mark.cuda
def test_batches_for_a_gpu_are_in_page_locked_memory(source):
    with Prefetcher(source, 2, pin_memory=True) as prefetcher:
        for first in (0, 4, 8):
            batch = prefetcher.batch(first, 4)
            assert all(tensor.is_pinned() for tensor in (batch.tokens, batch.targets, batch.sample_index))
            assert_same(batch, source.batch(first, 4))
