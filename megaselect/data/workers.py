"""Encodes chunks in processes of its own, and gives the results in the order of the chunks."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

from megaselect.data.encoding import EncodedChunk, Encoder
from megaselect.data.json_lines import MAX_LINE_BYTES, LineOptions
from megaselect.data.pieces import CHUNK_BYTES, Piece
from megaselect.data.tokenizer import Tokenizer
from megaselect.data.workspace import PreparationStopped

# How many chunks may be under way. Their bytes are bounded, too: two lines of the greatest length are never parsed at
# once, however many processes there are.
_CHUNKS_PER_WORKER = 4

_encoder: Encoder | None = None  # of a worker process


def encode_in_order(
    chunks: Iterable[list[Piece]], tokenizer: Path, options: LineOptions, num_workers: int
) -> Iterator[EncodedChunk]:
    """One result for each chunk; chunks are read a little ahead.

    The processes start anew (no fork of whatever threads the caller has) and end with the caller, however it ends.
    Raises PreparationStopped where one of them is killed, and the DataError of the first chunk that has one.
    """
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(tokenizer, options)
    )
    try:
        yield from _results(chunks, pool, num_workers)
    except BrokenProcessPool:
        raise PreparationStopped(
            "a worker process was ended from outside, perhaps for want of memory; run the same command again with a "
            f"smaller --workers than {num_workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _results(chunks: Iterable[list[Piece]], pool: ProcessPoolExecutor, num_workers: int) -> Iterator[EncodedChunk]:
    pending: deque[tuple[Future[EncodedChunk], int]] = deque()
    most_chunks = _CHUNKS_PER_WORKER * num_workers
    most_bytes = MAX_LINE_BYTES + most_chunks * CHUNK_BYTES
    pending_bytes = 0
    for chunk in chunks:
        num_bytes = sum(len(piece.raw) for piece in chunk)
        while pending and (len(pending) >= most_chunks or pending_bytes + num_bytes > most_bytes):
            future, done_bytes = pending.popleft()
            yield future.result()
            pending_bytes -= done_bytes
        pending.append((pool.submit(_encode, chunk), num_bytes))
        pending_bytes += num_bytes
    while pending:
        yield pending.popleft()[0].result()


def _start(tokenizer: Path, options: LineOptions) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(Tokenizer(tokenizer), options, num_threads=1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _encode(chunk: list[Piece]) -> EncodedChunk:
    assert _encoder is not None
    return _encoder.encode(chunk)
