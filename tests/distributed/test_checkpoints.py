"""Checkpoints of runs on ranks: written by any number of them, read by any other, the bits of one process."""

import hashlib
import json
import re
import shutil

import pytest
from whole_runs import assert_same_run

from megaselect.training.checkpoint_shared import LAST_SECONDS

SHARDINGS = {
    "parameters": ("--parallel.sharding", "parameters"),
    "gradients": ("--parallel.sharding", "gradients"),
    "whole": ("--parallel.sharding", "none"),
    "replicas": ("--parallel.sharding", "parameters", "--parallel.replicas", "2"),
}
CHAINS = {
    "2-1-4-3": [(2, "parameters"), (1, "parameters"), (4, "replicas"), (3, "gradients")],
    "4-2-3-1": [(4, "gradients"), (2, "whole"), (3, "parameters"), (1, "whole")],
    "3-4-4-2": [(3, "whole"), (4, "parameters"), (4, "whole"), (2, "gradients")],
}


@pytest.fixture(scope="session")
def uninterrupted(small_runs, tmp_path_factory):
    """`uninterrupted(dtype)`: the run directory of one process."""
    made = {}

    def run(dtype):
        if dtype not in made:
            made[dtype] = tmp_path_factory.mktemp("alone") / "run"
            ended = small_runs(1, made[dtype], "--dtype", dtype, "--max-steps", 8)
            assert ended.codes == [0], ended.err
        return made[dtype]

    return run


@pytest.mark.parametrize(
    ("chain", "dtype"),
    [
        pytest.param(chain, dtype, marks=pytest.mark.soak if number or dtype == "bf16" else ())
        for number, chain in enumerate(CHAINS)
        for dtype in ("fp32", "bf16")
    ],
)
def test_each_number_of_ranks_goes_on_where_another_was(small_runs, uninterrupted, tmp_path, chain, dtype):
    for step, (ranks, sharding) in zip((0, 2, 4, 6), CHAINS[chain], strict=True):
        ended = small_runs(ranks, tmp_path, "--dtype", dtype, "--max-steps", step + 2, *SHARDINGS[sharding])
        assert ended.codes == [0] * ranks, ended.err
        assert (f"continuing from step {step}" in ended.out[0]) == (step > 0)
        assert "".join(ended.out[1:]) == "".join(ended.err[1:]) == ""
    assert_same_run(tmp_path, uninterrupted(dtype))


MANY_RANKS, FEWER = (1, 2, 3, 4), ("parameters", "gradients", "whole")


@pytest.mark.soak
@pytest.mark.parametrize("sharding", [(one, other) for one in FEWER for other in FEWER], ids="-".join)
@pytest.mark.parametrize("after", MANY_RANKS)
@pytest.mark.parametrize("before", MANY_RANKS)
def test_from_any_number_of_ranks_to_any_other(small_runs, uninterrupted, tmp_path, before, after, sharding):
    for ranks, way, steps in ((before, sharding[0], 4), (after, sharding[1], 8)):
        ended = small_runs(ranks, tmp_path, "--max-steps", steps, *SHARDINGS[way])
        assert ended.codes == [0] * ranks, ended.err
    assert_same_run(tmp_path, uninterrupted("fp32"))


@pytest.fixture(scope="session")
def written(small_runs, tmp_path_factory):
    """`written(ranks)`: a run of 4 steps on ranks that share parameters, saved at 2 and 4; not to be changed."""
    made = {}

    def run(ranks):
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp("written") / "run"
            ended = small_runs(ranks, made[ranks], "--max-steps", 4)
            assert ended.codes == [0] * ranks, ended.err
        return made[ranks]

    return run


@pytest.fixture
def copied(written, tmp_path):
    """The same, a copy in tmp_path."""
    return lambda ranks: shutil.copytree(written(ranks), tmp_path / "run")


def in_format_2(home):
    """A checkpoint of one process as versions before ranks wrote it: no tensor in it has rows."""
    manifest = json.loads((home / "manifest.json").read_text())
    state = json.loads((home / "state.json").read_text())
    del state["config"]["parallel"]
    (home / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    content = (home / "state.json").read_bytes()
    manifest["files"]["state.json"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entries = {"format_version": 2, "files": manifest["files"]}
    assert all(
        tensor.keys() == {"dtype", "shape"} for file in entries["files"].values() for tensor in file["tensors"].values()
    )
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    (home / "manifest.json").write_text(json.dumps({**entries, "digest": digest}, indent=1) + "\n")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_of_a_version_before_ranks(small_runs, copied, uninterrupted, ranks):
    run_dir = copied(1)
    in_format_2(run_dir / "checkpoints" / "step-00000004")
    ended = small_runs(ranks, run_dir, "--max-steps", 8)
    assert ended.codes == [0] * ranks, ended.err
    assert "continuing from step 4" in ended.out[0]
    assert "damaged" not in ended.out[0]
    assert_same_run(run_dir, uninterrupted("fp32"))


def forge(home, file, rows_of):
    """Give the first tensor that the file has a part of other rows in the manifest, whose digest fits."""
    manifest = json.loads((home / "manifest.json").read_text())
    tensors = manifest["files"][file]["tensors"]
    name = next(name for name, tensor in tensors.items() if "rows" in tensor)
    tensors[name]["rows"] = rows_of(*tensors[name]["rows"])
    del manifest["digest"]
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (home / "manifest.json").write_text(json.dumps(manifest))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(home):
    one, other = home / "model-00000-of-00002.safetensors", home / "model-00001-of-00002.safetensors"
    one.rename(home / "aside")
    other.rename(one)
    (home / "aside").rename(other)


SECOND = "optimizer-00001-of-00002.safetensors"
DAMAGE = {
    "missing": (lambda home: (home / SECOND).unlink(), f"{SECOND} is missing"),
    "flipped": (lambda home: flip(home / SECOND), f"{SECOND}: its bytes have changed, by their SHA-256"),
    "flipped state": (lambda home: flip(home / "state.json"), "state.json: its bytes have changed"),
    "flipped manifest": (lambda home: flip(home / "manifest.json"), "manifest.json does not read"),
    "no manifest": (lambda home: (home / "manifest.json").unlink(), "manifest.json is missing"),
    "truncated": (lambda home: (home / SECOND).write_bytes((home / SECOND).read_bytes()[:-8]), f"{SECOND} has "),
    "swapped": (swap, "model-0000"),
    "a directory": (lambda home: ((home / SECOND).unlink(), (home / SECOND).mkdir()), f"{SECOND} is not a file"),
    "overlap": (
        lambda home: forge(home, SECOND, lambda start, total: [start - 1, total]),
        f"manifest.json: {SECOND} does",
    ),
    "gap": (lambda home: forge(home, SECOND, lambda start, total: [start + 1, total]), f"manifest.json: {SECOND} does"),
    "too few": (
        lambda home: forge(home, SECOND, lambda start, total: [start, total + 1]),
        "manifest.json: optimizer-0000",
    ),
    "negative": (lambda home: forge(home, SECOND, lambda start, total: [-start, total]), "manifest.json: "),
}


@pytest.mark.parametrize("ranks", [2, *(pytest.param(count, marks=pytest.mark.soak) for count in (1, 4))])
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_rank_passes_over_a_damaged_checkpoint_and_names_what_is_wrong(pool, copied, damage, ranks):
    spoil, problem = DAMAGE[damage]
    run_dir = copied(2)
    older, newer = (run_dir / "checkpoints" / name for name in ("step-00000002", "step-00000004"))
    assert find(pool, ranks, run_dir) == [["step-00000004", []]] * ranks
    spoil(newer)
    found = find(pool, ranks, run_dir)
    assert found == found[:1] * ranks
    name, notes = found[0]
    assert name == "step-00000002"
    assert [note.startswith(f"note: checkpoint {newer} is damaged ({problem}") for note in notes] == [True]
    spoil(older)
    found = find(pool, ranks, run_dir)
    assert found == found[:1] * ranks
    assert found[0][1][0].startswith(
        f"every checkpoint in {run_dir / 'checkpoints'} is damaged (step-00000004: {problem}"
    )


def find(pool, ranks, run_dir):
    return [list(each) for each in pool.run(ranks, "whole_runs", "find", run_dirs=[str(run_dir)] * ranks)]


def test_ranks_that_see_other_checkpoints_never_go_on_from_both(pool, written, copied):
    """As over a file system that shows old files to one of them."""
    here, there = (place / "checkpoints" / "step-00000004" for place in (written(2), copied(2)))
    manifest = (there / "manifest.json").read_text()
    assert pool.run(2, "whole_runs", "look_into", paths=[str(here), str(there)]) == [None, None]
    forge(there, SECOND, lambda start, total: [start, total])
    assert pool.run(2, "whole_runs", "look_into", paths=[str(here), str(there)]) == [None, None]
    shutil.copytree(written(2) / "checkpoints" / "step-00000002", there, dirs_exist_ok=True)
    assert (there / "manifest.json").read_text() != manifest
    problem = "manifest.json: rank 1 reads another one than rank 0"
    assert pool.run(2, "whole_runs", "look_into", paths=[str(here), str(there)]) == [problem] * 2


def test_a_run_goes_on_from_the_one_before_a_damaged_one(small_runs, copied, uninterrupted):
    run_dir = copied(2)
    flip(run_dir / "checkpoints" / "step-00000004" / SECOND)
    ended = small_runs(3, run_dir, "--max-steps", 8)
    assert ended.codes == [0, 0, 0], ended.err
    said = " ".join(ended.out[0].split())
    assert f"damaged ({SECOND}: its bytes have changed, by their SHA-256): step-00000002 is taken" in said
    assert "continuing from step 2" in said
    assert_same_run(run_dir, uninterrupted("fp32"))


def test_where_all_are_damaged_one_rank_says_so_and_all_end(small_runs, copied):
    run_dir = copied(2)
    for home in (run_dir / "checkpoints").glob("step-*"):
        flip(home / SECOND)
    ended = small_runs(3, run_dir, "--max-steps", 8)
    assert ended.codes == [2, 2, 2]
    lines = [line for text in ended.err for line in text.splitlines()]
    assert len(lines) == 1
    assert lines[0].startswith(
        f"error: every checkpoint in {run_dir / 'checkpoints'} is damaged (step-00000004: {SECOND}"
    )


REASONS = {
    "quota": ("quota", {"at_step": 4}, "File too large on rank {rank}"),
    "no memory": ("no_host_memory", {"save": 2}, "no host memory for a copy of the state on rank {rank}"),
}


@pytest.mark.parametrize("rank", [2, *(pytest.param(rank, marks=pytest.mark.soak) for rank in (0, 1))])
@pytest.mark.parametrize("trouble", REASONS)
def test_a_save_that_one_rank_cannot_make_fails_as_a_whole(small_runs, tmp_path, trouble, rank):
    """One note, which names the rank; nothing of it stays; the run goes on, and its next save works."""
    name, keywords, reason = REASONS[trouble]
    ended = small_runs(3, tmp_path, "--max-steps", 6, setup=(name, {"rank": rank, **keywords}))
    assert ended.codes == [0, 0, 0], ended.err
    assert left_in(tmp_path) == ["step-00000002", "step-00000006"]
    notes = re.findall("cannot write the checkpoint", " ".join(ended.out[0].split()))
    assert len(notes) == 1
    assert f"{reason.format(rank=rank)}; step-00000002 is whole" in " ".join(ended.out[0].split())
    assert "".join(ended.out[1:]) == "".join(ended.err) == ""


def left_in(run_dir):
    """The best, which is one of the others, aside."""
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*") if path.name != "best")


@pytest.mark.parametrize("rank", [0, 1])
def test_where_the_last_save_fails_the_run_ends_with_one_error(small_runs, tmp_path, rank):
    ended = small_runs(2, tmp_path, "--max-steps", 4, setup=("quota", {"rank": rank, "at_step": 4}))
    assert ended.codes[0] == 2
    assert left_in(tmp_path) == ["step-00000002"]
    lines = [line for text in ended.err for line in text.splitlines()]
    assert len(lines) == 1
    assert (
        f"File too large on rank {rank}; step-00000002 is whole: raise the limit on a file's size, then continue"
        in lines[0]
    )


@pytest.mark.parametrize("writer", [0, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.soak
def test_a_save_in_flight_when_the_run_fails_ends_soon(pool, tmp_path, writer):
    """The other rank does not come to it: it may be gone. What was written is removed."""
    results = pool.run(
        2, "whole_runs", "write_alone", home=str(tmp_path / "checkpoints" / "step-00000002"), writer=writer
    )
    said, seconds = results[writer]
    assert said.startswith("no rank has left save/1/")
    assert seconds < 2 * LAST_SECONDS
    assert not any(tmp_path.glob("checkpoints/*"))
