"""Batches read ahead of the step by a thread, so that the step does not wait for them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from megaselect.data.sampler import Batch, BatchSource


@dataclass(frozen=True, slots=True)
class _Ahead:
    first_sample_index: int
    size: int
    batch: Future[Batch]


class Prefetcher:
    """Has the batches of `source`, bitwise, while a thread reads the `depth` that should be asked for next.

    The next batch is taken to be the one `ranks` batches on in the order of sample indices, of the same size: so many
    ranks take turns. Another one, a repeated step say, is read when it is asked for, and the thread goes on from there.
    An error in the thread is raised where its batch is asked for, and nowhere if it never is. depth 0: no thread. Not
    for calls from several threads.

    pin_memory: hands out tensors in page-locked memory, from which a copy to the GPU does not wait.
    """

    def __init__(self, source: BatchSource, depth: int, *, pin_memory: bool = False, ranks: int = 1) -> None:
        self._source, self._depth, self._pin_memory, self._ranks = source, depth, pin_memory, ranks
        self._ahead: deque[_Ahead] = deque()
        self._executor = ThreadPoolExecutor(1, "megaselect-prefetch") if depth else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Batch:
        """The same as source.batch. Raises what it raises; with a thread, RuntimeError after `close`."""
        if self._executor is None:
            return self._read(first_sample_index, micro_batch_size)
        wanted = (first_sample_index, micro_batch_size)
        if not self._ahead or (self._ahead[0].first_sample_index, self._ahead[0].size) != wanted:
            self._forget()
            self._submit(self._executor, *wanted)
        head = self._ahead.popleft()
        following = self._ahead[-1] if self._ahead else head
        while len(self._ahead) < self._depth:
            next_index = following.first_sample_index + self._ranks * following.size
            following = self._submit(self._executor, next_index, following.size)
        return head.batch.result()

    def close(self) -> None:
        """Ends the thread, after the batch that it is reading at the moment. Calling it twice is fine."""
        self._forget()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _submit(self, executor: ThreadPoolExecutor, first_sample_index: int, size: int) -> _Ahead:
        ahead = _Ahead(first_sample_index, size, executor.submit(self._read, first_sample_index, size))
        self._ahead.append(ahead)
        return ahead

    def _read(self, first_sample_index: int, size: int) -> Batch:
        batch = self._source.batch(first_sample_index, size)
        return batch.pinned() if self._pin_memory else batch

    def _forget(self) -> None:
        for ahead in self._ahead:
            ahead.batch.cancel()
        self._ahead.clear()
