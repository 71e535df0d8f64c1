"""What goes wrong on a rank is told in one line, by one rank, and ends all of them."""

import re

import pytest

PATIENCE = 20.0  # seconds from the first rank's end to the last one's; the time-out is ten minutes


@pytest.fixture
def run(launcher, run_arguments, tmp_path):
    """run(*flags, **more) is a run on ranks in an empty directory, which ends soon."""

    def run(*flags, **more):
        flags = ("--max-steps", "4", "--run-dir", "run", *flags)
        run = launcher.run([*run_arguments, *flags], tmp_path, **more)
        assert run.starts[0]["seconds"] < PATIENCE
        return run

    return run


def line_of(run, *codes):
    """The only one on stderr. codes: exit codes of the ranks, one of these; without any, 2 of each."""
    assert tuple(run.codes) in (codes or [(2, 2)]), run
    assert len(run.lines) == 1, run
    return run.lines[0].removeprefix("error: ")


REFUSED = {
    "other settings": ([[], ["--training.clip-grad", "0.5"]], "rank 1 has training.clip_grad 0.5 and rank 0 has 1.0"),
    "a mistyped flag": ([["--no-such"]] * 2, "unknown flag --no-such"),
    "replicas that do not divide": (
        [["--parallel.replicas", "3"]] * 2,
        r"parallel.replicas \(3\) must divide the 2 ranks",
    ),
    "a batch that does not divide": (
        [["--training.global-batch-size", "3"]] * 2,
        "2 ranks with training.micro_batch_size 1 take 2 samples",
    ),
    "data that one lacks": (
        [[], ["--data.prefix", "absent"]],
        r"rank 1 \(process \d+ on \S+\): absent.idx does not exist",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_it_begins(run, tmp_path, case):
    flags_of_ranks, words = REFUSED[case]
    assert re.match(words, line_of(run(own_arguments=dict(enumerate(flags_of_ranks)))))
    assert not (tmp_path / "run").exists()


def test_other_data(run, tmp_path_factory, tmp_path, write_tokens):
    """Under the same name, as on the disk of another machine: the rank has another working directory."""
    write_tokens(tmp_path / "tokens", seed=0)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_tokens(elsewhere / "tokens", seed=1)
    ended = run("--data.prefix", "tokens", "--run-dir", str(tmp_path / "run"), places={1: str(elsewhere)})
    assert re.match(r"rank 1 has the data's fingerprint \w+ and rank 0 has \w+", line_of(ended))


@pytest.mark.parametrize("rank", [0, 1])
def test_out_of_memory(run, rank):
    ended = run("--training.eval-interval", "0", troubles={rank: {"collective": 60, "what": "out of memory"}})
    name = r"rank 1 \(process \d+ on \S+\): " if rank else ""
    assert re.match(rf"{name}step \d ran out of memory \(2.00 GiB more was asked for\)", line_of(ended))


def test_a_full_disk(run):
    ended = run(troubles={1: {"what": "full disk"}})
    assert re.match(
        r"cannot write the checkpoint run/checkpoints/step-00000004: File too large on rank 1; there is none before it",
        line_of(ended, (2, 0), (2, -15)),  # a rank that is done is ended by the launcher where it has not ended yet
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_shows_its_traceback_and_no_other(run, rank):
    ended = run(troubles={rank: {"collective": 60, "what": "bug"}})
    assert tuple(ended.codes) == ((1, 2) if rank == 0 else (2, 1))
    assert ended.err.count("Traceback") == 1
    assert "error:" not in ended.err
    assert {line.partition(":")[0] for line in ended.lines} == {f"[rank{rank}]"}
    assert ended.lines[-1].endswith("ZeroDivisionError: division by zero")


@pytest.mark.soak
def test_a_rank_that_hangs_is_named_by_one_of_those_that_wait(run):
    """The third rank, which waits for the first, which waits for the second, is not taken for another that hangs."""
    trouble = {1: {"collective": 60, "what": "hangs"}}
    ended = run("--parallel.timeout", "4s", ranks=3, troubles=trouble, patience=5)
    assert re.match(r"rank 1 \(process \d+ on \S+\) does not answer: start the ranks", line_of(ended, (2, -9, 2)))
