"""Writes the checkpoints of a run beside its steps: a copy to host memory, and a thread that does the rest."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

from megaselect.config import Config, TrainingConfig
from megaselect.devices import is_out_of_memory
from megaselect.distributed.board import LostRank
from megaselect.distributed.pieces import Piece, pieces_to_write
from megaselect.distributed.ranks import Ranks
from megaselect.errors import CheckpointError
from megaselect.training.checkpoint_files import (
    KINDS,
    Kind,
    Rows,
    checkpoint_path,
    discard,
    inspect,
    link_best,
    list_checkpoints,
    rank_file,
    remove_leftovers,
)
from megaselect.training.checkpoint_records import Damage, SavedState
from megaselect.training.checkpoint_shared import SharedWriter, TakePart, WrittenPart
from megaselect.training.disk_errors import reason_of, remedy_for
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState


class _Copied(NamedTuple):
    """A file that this rank writes, and how to have the copies of its tensors; rows of those that are parts."""

    file: str
    finish: Callable[[], dict[str, torch.Tensor]]
    rows: Rows


class CheckpointSaver:
    """Saves a run's checkpoints in RUN/checkpoints; enter it around the run.

    Of the whole ones it keeps the newest training.keep_checkpoints and, with keep_best, that of the lowest validation
    loss, which RUN/checkpoints/best leads to: --resume RUN/checkpoints/best continues from it. Damaged ones are neither
    counted nor removed, until their step is saved again. One save is in flight at most.
    """

    def __init__(
        self,
        run_dir: Path,
        training: TrainingConfig,
        data_fingerprint: str,
        sync_metrics: Callable[[], None],
        note: Callable[[str], None],
        ranks: Ranks | None = None,
    ) -> None:
        """sync_metrics: brings the metrics so far to disk, or raises OSError. note: hears of a save that failed."""
        self._run_dir, self._training, self._data_fingerprint = run_dir, training, data_fingerprint
        self._sync_metrics, self._note = sync_metrics, note
        self._ranks = ranks or Ranks()
        self._shared = SharedWriter(self._ranks, sync_metrics)
        self._host: dict[Kind, HostCopy] = {kind: HostCopy() for kind in KINDS}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[OSError | None] | None = None
        self._step = 0
        self._failure: str | None = None
        self._whole: dict[Path, bool] = {}

    def save(self, optimizer: MixedPrecisionAdamW, state: RunState, config: Config) -> None:
        """Begin to write RUN/checkpoints/step-N. On return the model may change: what is written is a copy.

        Waits for the save before. A save that fails is told in a note, and the run goes on.
        """
        self.wait()
        self._step = state.step
        take_part = self._begin_copy(optimizer)
        saved = SavedState(
            state=state,
            loss_scale=optimizer.scalars(),
            config=config.to_dict(),
            data_fingerprint=self._data_fingerprint,
        )
        self._in_flight = self._thread.submit(self._write, take_part, saved)

    def _begin_copy(self, optimizer: MixedPrecisionAdamW) -> TakePart:
        """Where there is no memory for the copy the thread tells so, in which the other ranks hear of it too."""
        try:
            copied = [
                self._copy("model", optimizer.weight_pieces(), optimizer),
                self._copy("optimizer", optimizer.pieces(), optimizer),
            ]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _no_memory
        return lambda: WrittenPart({each.file: each.finish() for each in copied}, {e.file: e.rows for e in copied})

    def _copy(self, kind: Kind, pieces: Mapping[str, Piece], optimizer: MixedPrecisionAdamW) -> _Copied:
        """Begin to copy what this rank writes of them."""
        own = pieces_to_write(pieces, optimizer.layout)
        tensors = {name: piece.tensor for name, piece in own.items()}
        dtype = optimizer.dtype if kind == "model" else None  # a cut model's weights are fp32 whatever it computes in
        rows = {name: piece.rows for name, piece in own.items() if piece.rows}
        return _Copied(rank_file(kind, self._ranks.rank, self._ranks.size), self._host[kind].take(tensors, dtype), rows)

    def report(self) -> None:
        """Tell of the save in flight, if it has ended and failed."""
        if self._in_flight is not None and self._in_flight.done():
            self.wait()

    def __enter__(self) -> Self:
        if self._ranks.is_first:
            remove_leftovers(self._run_dir)
        self._thread.submit(int).result()  # the thread is there before memory is short
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Wait for the save in flight. Raises CheckpointError where the run's last save failed, and as `wait` does."""
        if kind is not None:
            self._shared.give_up_soon()
        try:
            self.wait()
        except LostRank:
            if kind is None:  # else the error that comes through here tells
                raise
        finally:
            self._thread.shutdown()
        if self._failure and kind is None:
            raise CheckpointError(f"{self._failure}, then continue with --resume auto")

    def wait(self) -> None:
        """Until nothing is in flight; a failure becomes a note. Raises LostRank where another rank is gone."""
        if self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        try:
            left_over = in_flight.result()
        except OSError as error:
            self._fail(error)
            return
        self._failure = None
        if left_over is not None:
            self._note(f"cannot remove an old checkpoint: {reason_of(left_over)} ({left_over.filename})")

    def _fail(self, error: OSError) -> None:
        home = checkpoint_path(self._run_dir, self._step)
        self._failure = (
            f"cannot write the checkpoint {home}: {reason_of(error)}; {self._last_good()}: {remedy_for(error)}"
        )
        self._note(f"{self._failure}; the run goes on and tries again at its next save")

    def _last_good(self) -> str:
        known = [path for path in list_checkpoints(self._run_dir) if self._is_whole(path)]
        return f"{known[-1].name} is whole" if known else "there is none before it"

    def _write(self, take_part: TakePart, saved: SavedState) -> OSError | None:
        """In the thread: the checkpoint; then what it makes superfluous goes, or it is returned why it cannot."""
        home = checkpoint_path(self._run_dir, saved.state.step)
        self._shared.write(home, take_part, saved)
        if not self._ranks.is_first:
            return None
        self._whole[home] = True
        try:
            self._tidy(home, saved.state)
        except OSError as error:
            return error
        return None

    def _tidy(self, home: Path, state: RunState) -> None:
        """Remove what is not kept. Those ahead are of a run that went back: the metrics have lost their steps too."""
        whole = [path for path in list_checkpoints(self._run_dir) if self._is_whole(path)]
        if home not in whole:
            raise FileNotFoundError(errno.ENOENT, "it was removed by somebody else", str(home))
        here = whole.index(home) + 1
        scored_best = checkpoint_path(self._run_dir, state.best_step or 0)
        best = scored_best if self._training.keep_best and scored_best in whole[:here] else None
        with contextlib.suppress(OSError):  # a file system without links: state.json names the best step too
            link_best(self._run_dir, best)
        kept = {*whole[max(here - self._training.keep_checkpoints, 0) : here], best}
        for path in whole:
            if path not in kept:
                discard(path)

    def _is_whole(self, path: Path) -> bool:
        """Read once where another process wrote it."""
        if path not in self._whole:
            try:
                inspect(path)
                self._whole[path] = True
            except Damage:
                self._whole[path] = False
        return self._whole[path]


def _no_memory() -> WrittenPart:
    raise OSError(errno.ENOMEM, "no host memory for a copy of the state")


class HostCopy:
    """A copy of named tensors in host memory, kept from one copy to the next; pinned where the tensors are on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def take(
        self, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None
    ) -> Callable[[], dict[str, torch.Tensor]]:
        """Begin the copy; call what is returned to have it. On a GPU it runs in the stream of the caller.

        dtype: of the copies; None: each in its own. What the caller queues after it, such as the next step, changes the
        tensors after they were copied.
        """
        on_gpu = [tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"]
        buffers = {name: self._buffer(name, tensor, dtype or tensor.dtype) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            buffers[name].copy_(tensor, non_blocking=True)
        self._buffers = buffers
        copied = torch.cuda.current_stream(on_gpu[0]).record_event() if on_gpu else None

        def finish() -> dict[str, torch.Tensor]:
            if copied is not None:
                copied.synchronize()
            return buffers

        return finish

    def _buffer(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, dtype):
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=dtype, pin_memory=pinned)
        return buffer
