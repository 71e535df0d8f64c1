"""How near `megaselect data prepare` comes to bare sentencepiece. `python benchmarks/prepare.py --megabytes 100`

Two contenders take turns on the same corpus with the same tokenizer: processes that do nothing but encode the blocks,
which they hold already, and the whole of `prepare` with as many workers: reading, hashing, splitting, writing. Peak
memory is the greatest sum of the resident sizes of prepare's process and its workers, read every 20 ms; what they share
counts several times.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import BinaryIO

import zstandard

SAMPLE_SECONDS = 0.02
KINDS = ("text", "jsonl", "jsonl.gz", "jsonl.zst")


def create(path: Path) -> BinaryIO:
    """A file to write to, compressed by its name."""
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 6)
    return zstandard.open(path, "wb") if path.suffix == ".zst" else path.open("wb")


def write_corpus(path: Path, kind: str, num_bytes: int) -> None:
    """The default corpus's documents over and over, in one file."""
    from megaselect.data.corpus import default_corpus

    texts = [document.path.read_text() for document in default_corpus().documents]
    left = num_bytes
    with create(path) as file:
        while left > 0:
            for text in texts:
                raw = (text if kind == "text" else json.dumps({"text": text}) + "\n").encode()
                file.write(raw)
                left -= len(raw)
                if left <= 0:
                    break


def bare(blocks: list[str], model: Path, ready: multiprocessing.Barrier) -> None:
    """One of the processes that only encode."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model), num_threads=1)
    ready.wait()
    for first in range(0, len(blocks), 64):
        processor.encode(blocks[first : first + 64], return_type="numpy")


def time_bare(shares: list[list[str]], model: Path) -> float:
    """Seconds from when all are ready to when all have ended."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(len(shares) + 1)
    processes = [context.Process(target=bare, args=(blocks, model, ready)) for blocks in shares]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def run_prepare(source: Path, prefix: Path, model: Path, workers: int) -> None:
    """What is timed and weighed."""
    from megaselect.data.prepare import prepare

    prepare([source], prefix, tokenizer=model, workers=workers)


def time_prepare(source: Path, prefix: Path, model: Path, workers: int) -> tuple[float, int]:
    """Seconds from the process's start to its end, and peak bytes."""
    process = multiprocessing.get_context("spawn").Process(target=run_prepare, args=(source, prefix, model, workers))
    start = time.perf_counter()
    process.start()
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], resident_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.join()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if process.exitcode:
        raise SystemExit(f"prepare ended with {process.exitcode}")
    return seconds, peak[0]


def resident_bytes(pid: int | None) -> int:
    """Of a process and all that it started, now, by Linux's account."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(child)) for child in children)


def cpu_seconds() -> float:
    """Of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def training_blocks(source: Path, kind: str, model: Path) -> list[str]:
    """The texts that prepare encodes, cut as it cuts them."""
    from megaselect.data.documents import Document, decode
    from megaselect.data.json_lines import LineOptions, parse_lines
    from megaselect.data.pieces import BlockPiece, cut_chunks, divide
    from megaselect.data.survey import survey
    from megaselect.data.tokenizer import Tokenizer

    document = Document(source.name, source, 0, survey(source, lambda _: None).num_bytes, kind)
    blocks, cut = [], Tokenizer(model).cut
    for chunk in cut_chunks(divide([document], 0.05, 0.0), cut):
        for piece in chunk:
            if isinstance(piece, BlockPiece):
                blocks.append(decode(piece.raw)[0])
            else:
                lines = parse_lines(piece, LineOptions())
                blocks += [decode(block.raw)[0] for line in lines for block in line.blocks(cut)]
    return blocks


def measure(arguments: argparse.Namespace, directory: Path) -> None:
    """Print every round, then the medians."""
    from megaselect.data.prepare import prepare_default_corpus

    source = directory / f"corpus.{arguments.kind.replace('text', 'txt')}"
    write_corpus(source, arguments.kind, arguments.megabytes * 1_000_000)
    model = prepare_default_corpus().tokenizer_path
    blocks = training_blocks(source, arguments.kind, model)
    num_megabytes = sum(len(block.encode()) for block in blocks) / 1e6
    shares = [blocks[first :: arguments.workers] for first in range(arguments.workers)]
    print(f"{num_megabytes:.0f} MB of text as {arguments.kind}, {arguments.workers} processes, load {os.getloadavg()}")
    rounds = []
    for number in range(arguments.rounds):
        before = cpu_seconds()
        bare_seconds = time_bare(shares, model)
        between = cpu_seconds()
        prepare_seconds, peak = time_prepare(source, directory / "out", model, arguments.workers)
        bare_cpu, prepare_cpu = between - before, cpu_seconds() - between
        rounds.append((bare_seconds, prepare_seconds, bare_cpu, prepare_cpu, peak))
        print(
            f"round {number}: bare {bare_seconds:6.2f} s (CPU {bare_cpu:6.2f} s)  prepare {prepare_seconds:6.2f} s "
            f"(CPU {prepare_cpu:6.2f} s)  peak {peak / 1e6:.0f} MB",
            flush=True,
        )
    bares, prepares, bare_cpus, prepare_cpus, peaks = zip(*rounds, strict=True)
    ratio = median(one / other for one, other in zip(bares, prepares, strict=True))
    cpu_ratio = median(one / other for one, other in zip(bare_cpus, prepare_cpus, strict=True))
    print(
        f"median: bare {num_megabytes / median(bares):.2f} MB/s, prepare {num_megabytes / median(prepares):.2f} MB/s; "
        f"prepare's throughput / bare's, by round: {ratio:.1%} (by CPU time {cpu_ratio:.1%}); "
        f"peak {max(peaks) / 1e6:.0f} MB"
    )


def main() -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(description="data prepare beside bare sentencepiece.")
    parser.add_argument("--megabytes", type=int, default=100, help="of text (default 100)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--workers", type=int, default=2, help="processes of each contender (default 2)")
    parser.add_argument("--kind", choices=KINDS, default="text", help="of the input file (default text)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(arguments, Path(directory))
    return 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as in run.py
    sys.exit(main())
