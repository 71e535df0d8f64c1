"""Checkpoints on disk: safetensors and JSON, no pickle, so that nothing in them runs when they are loaded.

    RUN/checkpoints/step-00000100/model.safetensors       weights in the compute dtype, by parameter name
                                 /optimizer.safetensors   moments, step counts, fp32 master weights, by parameter name
                                 /state.json              position, names in other systems, loss scale, config, data
                                 /manifest.json           size and SHA-256 of each file, dtype and shape of each tensor
    RUN/checkpoints/best -> step-00000080                 the one with the lowest validation loss, where it is kept

Each of several ranks writes files of its own, model-00000-of-00004.safetensors and so on, with the rows that it holds.

A checkpoint is written under a name that starts with a dot, every file is flushed to disk, the manifest comes last, and
then the directory gets its name: one that has its name was whole at that moment. What happened to it since then is told
by the manifest, which holds its own digest too. The dropout masks and the data order are functions of the seed and the
sample index, so there is no RNG state to keep. What a file holds is read from the manifest, by name, shape and rows.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megaselect.distributed.ranks import Ranks
from megaselect.errors import CheckpointError
from megaselect.files import sync
from megaselect.training.checkpoint_records import (
    FORMAT_VERSION,
    READ_VERSIONS,
    Damage,
    FileRecord,
    Manifest,
    SavedState,
    TensorRecord,
    read_record,
)

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
BEST = "best"
_NAME = re.compile(r"step-(\d{8,18})")
_FILE = re.compile(r"(model|optimizer)(-\d{5,}-of-\d{5,})?\.safetensors|state\.json")
_LARGEST_JSON_BYTES = 64 * 2**20
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


Kind = Literal["model", "optimizer"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Rows = Mapping[str, tuple[int, int]]
Part = tuple[str, TensorRecord]
"""A file's name, and what it holds of a tensor."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are those that were written, to the bit."""

    path: Path
    manifest: Manifest
    saved: SavedState

    def parts(self, kind: Kind) -> dict[str, list[Part]]:
        """Tensor -> where its rows lie, from the first to the last."""
        return _parts(self.manifest, kind)


def rank_file(kind: Kind, rank: int, ranks: int) -> str:
    """The name of what a rank writes."""
    return f"{kind}-{rank:05d}-of-{ranks:05d}.safetensors" if ranks > 1 else f"{kind}.safetensors"


def _parts(manifest: Manifest, kind: Kind) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for file, record in manifest.files.items():
        if _kind_of(file) == kind:
            for name, tensor in record.tensors.items():
                found.setdefault(name, []).append((file, tensor))
    for parts in found.values():
        parts.sort(key=lambda part: part[1].span.start)
    return found


def _kind_of(file: str) -> str:
    return file.partition(".")[0].partition("-")[0]


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """RUN/checkpoints/step-N."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None where it is not the name of one."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Directories that are named as checkpoints, oldest first; whether they are whole tells `open_checkpoint`."""
    steps = {path: step_of(path) for path in (run_dir / "checkpoints").glob("step-*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: steps[path] or 0)


def open_checkpoint(path: Path, ranks: Ranks | None = None) -> Checkpoint:
    """The checkpoint, after every byte of it was compared with its manifest. Raises CheckpointError."""
    try:
        return inspect(path, ranks)
    except Damage as damage:
        raise CheckpointError(f"checkpoint {path} is damaged ({damage}): name another one") from damage


def inspect(path: Path, ranks: Ranks | None = None) -> Checkpoint:
    """The same, raising Damage. Of several ranks each reads a share of the files, and all find the same."""
    ranks, found, problem = ranks or Ranks(), None, None
    try:
        found = _inspect(path, ranks)
    except Damage as damage:
        problem = str(damage)
    problems = [each for each in ranks.gather_values(problem) if each]
    digests = ranks.gather_values(found.manifest.digest if found else "")
    if not problems and len(set(digests)) > 1:
        problems = [f"{MANIFEST}: rank {_first_other(digests)} reads another one than rank 0"]
    if problems or found is None:
        raise Damage(problems[0])
    return found


def _first_other(values: list[str]) -> int:
    return next(number for number, value in enumerate(values) if value != values[0])


def _inspect(path: Path, ranks: Ranks) -> Checkpoint:
    """The checkpoint, by this rank's share of its files."""
    try:
        manifest = _read_manifest(path)
        for name, record in manifest.files.items():
            _check_size(path / name, record)
        for number, (name, record) in enumerate(sorted(manifest.files.items())):
            if number % ranks.size == ranks.rank:
                _check_bytes(path / name, record)
        return Checkpoint(path, manifest, read_record(SavedState, _read_json(path / STATE), STATE))
    except SafetensorError as error:
        raise Damage(f"safetensors: {error}") from error
    except OSError as error:
        raise Damage(f"{Path(error.filename or path).name}: {error.strerror}") from error


def write_checkpoint(
    home: Path, tensors: Mapping[str, dict[str, Tensor]], saved: SavedState, ready: Callable[[], None]
) -> None:
    """Make the checkpoint `home` of contiguous tensors on the CPU; RUN must be there. Nothing is left where it fails.

    tensors: file name -> tensors by name. ready: called when all but the manifest is on disk. Raises OSError.
    """
    try:
        begin_checkpoint(home)
        finish_checkpoint(home, write_files(home, tensors), saved, ready)
    finally:
        abandon_checkpoint(home)


def begin_checkpoint(home: Path) -> None:
    """Make room for its files, beside its place. Raises OSError."""
    if not home.parent.is_dir():
        home.parent.mkdir()
        sync(home.parent.parent)
    abandon_checkpoint(home)
    _aside(home).mkdir()


def write_files(
    home: Path, tensors: Mapping[str, dict[str, Tensor]], rows: Mapping[str, Rows] | None = None
) -> dict[str, FileRecord]:
    """Bring files to disk: file name -> tensors by name. rows: of those that are parts. Raises OSError."""
    return {
        name: _write_tensors(_aside(home) / name, group, (rows or {}).get(name, {})) for name, group in tensors.items()
    }


def finish_checkpoint(home: Path, files: dict[str, FileRecord], saved: SavedState, ready: Callable[[], None]) -> None:
    """Give it its name, when all its files are on disk. ready: called before the manifest is. Raises OSError."""
    aside = _aside(home)
    files = {**files, STATE: _write_json(aside / STATE, saved.model_dump_json(indent=1))}
    ready()
    _write_json(aside / MANIFEST, Manifest.of(files).model_dump_json(indent=1, exclude_none=True))
    sync(aside)
    if home.exists():
        discard(home)
    os.rename(aside, home)
    sync(home.parent)


def abandon_checkpoint(home: Path) -> None:
    """Remove what has been written of it, if it has not got its name."""
    shutil.rmtree(_aside(home), ignore_errors=True)


def _aside(home: Path) -> Path:
    return home.with_name(f".{home.name}.partial")


def discard(path: Path) -> None:
    """Remove a checkpoint. It loses its name first: one that has its name is never half removed. Raises OSError."""
    gone = path.with_name(f".{path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone)


def remove_leftovers(run_dir: Path) -> None:
    """What a killed run left half written or half removed."""
    for pattern in (".step-*.partial", ".step-*.removed", f".{BEST}.partial"):
        for path in (run_dir / "checkpoints").glob(pattern):
            if path.is_symlink():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)


def link_best(run_dir: Path, best: Path | None) -> None:
    """Let RUN/checkpoints/best be this checkpoint; None: there is none. Raises OSError."""
    link = run_dir / "checkpoints" / BEST
    aside = link.with_name(f".{BEST}.partial")
    if best is None:
        link.unlink(missing_ok=True)
    elif not link.is_symlink() or os.readlink(link) != best.name:
        aside.unlink(missing_ok=True)
        aside.symlink_to(best.name)
        os.rename(aside, link)


def tensors_in(path: Path, rows: Rows | None = None) -> dict[str, TensorRecord]:
    """What a safetensors file says that it holds; its data is not read. rows: of what is a part.

    Raises SafetensorError.
    """
    with safe_open(path, framework="pt", backend="pread") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        return {
            name: TensorRecord(dtype=each.get_dtype(), shape=tuple(each.get_shape()), rows=(rows or {}).get(name))
            for name, each in slices.items()
        }


def sha256_of(path: Path) -> str:
    """In hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path) -> Manifest:
    if not (path / MANIFEST).exists():
        if (path / STATE).exists() and b'"format_version": 1,' in _read_json(path / STATE)[:100]:
            raise Damage(f"it is in format 1, this version reads format {FORMAT_VERSION}")
        raise Damage(f"{MANIFEST} is missing")
    manifest = read_record(Manifest, _read_json(path / MANIFEST), MANIFEST)
    if manifest.format_version not in READ_VERSIONS:
        raise Damage(f"it is in format {manifest.format_version}, this version reads format {FORMAT_VERSION}")
    if manifest != manifest.sealed():
        raise Damage(f"{MANIFEST}: its entries have changed, by their SHA-256")
    wanted = {"model", "optimizer", "state"}
    if not all(map(_FILE.fullmatch, manifest.files)) or set(map(_kind_of, manifest.files)) != wanted:
        raise Damage(f"{MANIFEST} names other files than {MODEL}, {OPTIMIZER} and {STATE}, or parts of them")
    for kind in KINDS:
        _check_rows(_parts(manifest, kind))
    return manifest


def _check_rows(tensors: dict[str, list[Part]]) -> None:
    """Every row of each tensor is there once."""
    for name, parts in tensors.items():
        wholes = {(part.whole.dtype, part.whole.shape) for _, part in parts}
        done = 0
        for file, part in parts:
            if part.span.start != done or len(wholes) > 1:
                raise Damage(f"{MANIFEST}: {file} does not go on with {name} where the part before it ends, at {done}")
            done = part.span.stop
        if done != len(parts[0][1].whole.span):
            raise Damage(f"{MANIFEST}: {name} has {len(parts[0][1].whole.span)} rows, and the files end at {done}")


def _check_bytes(path: Path, record: FileRecord) -> None:
    if sha256_of(path) != record.sha256:
        raise Damage(f"{path.name}: its bytes have changed, by their SHA-256")
    if path.name == STATE:
        return
    rows = {name: tensor.rows for name, tensor in record.tensors.items() if tensor.rows}
    if tensors_in(path, rows) != record.tensors:
        raise Damage(f"{path.name} holds other tensors than {MANIFEST} says")


def _check_size(path: Path, record: FileRecord) -> None:
    if not path.exists():
        raise Damage(f"{path.name} is missing")
    size = _regular_size(path)
    if size != record.bytes:
        raise Damage(f"{path.name} has {size} bytes, {MANIFEST} says {record.bytes}")


def _regular_size(path: Path) -> int:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise Damage(f"{path.name} is not a file")
    return found.st_size


def _read_json(path: Path) -> bytes:
    if _regular_size(path) > _LARGEST_JSON_BYTES:
        raise Damage(f"{path.name} has more than {_LARGEST_JSON_BYTES} bytes")
    return path.read_bytes()


def _write_tensors(path: Path, tensors: dict[str, Tensor], rows: Rows) -> FileRecord:
    try:
        save_file(tensors, path)
        names = tensors_in(path, rows)
    except SafetensorError as error:
        raise _as_os_error(error) from error
    return _written(path, names)


def _write_json(path: Path, text: str) -> FileRecord:
    path.write_text(text + "\n")
    return _written(path, {})


def _written(path: Path, tensors: dict[str, TensorRecord]) -> FileRecord:
    sync(path)
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path), tensors=tensors)


def _as_os_error(error: SafetensorError) -> OSError:
    """The system's refusal that safetensors tells of in words."""
    match = _OS_ERROR.search(str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else OSError(0, str(error))
