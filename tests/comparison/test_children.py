"""How the parent reads its children, and how they begin: real processes, which end as endings.py says."""

import json

import endings
import pytest
from measurements import CONFIG

from megaselect.comparison import children
from megaselect.comparison.children import Children, context_for, largest_micro_batch
from megaselect.comparison.measurement import Answer, BatchJob, TrainJob
from megaselect.gpus import find_gpu

TASK = TrainJob(CONFIG.to_dict(), 1, 1, 1, False)


@pytest.mark.parametrize(
    ("ending", "failure"),
    [
        ("killed", "out of memory: the system ended the process"),
        ("segmentation_fault", "the process ended by SIGSEGV"),
        ("last_words", "the process ended with code 3: last"),
        ("no_thread", "out of memory: cannot allocate memory for thread-local data: ABORT"),
        ("silent", "the process ended with code 0: it said nothing"),
        ("no_answer", "the process ended with code 0: it said nothing"),
        ("raises", "the process ended with code 1: RuntimeError: broken"),
    ],
)
def test_a_process_that_dies_is_an_answer(ending, failure, monkeypatch, capfd):
    monkeypatch.setattr(children, "begin", getattr(endings, ending))
    with Children() as some:
        assert some.ask(TASK) == Answer(failure=failure)
    assert capfd.readouterr() == ("", "")


def test_the_task_is_on_disk_and_each_answer_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setattr(children, "begin", endings.answers_once)
    with Children() as some:
        assert some.ask(TASK) == Answer(failure="no", shared=True)
        assert some.ask(TASK).failure == "the process ended with code 0: it said nothing"
    assert json.loads((tmp_path / "seen").read_text())["steps"] == 1


def test_a_child_has_its_parent_s_environment_of_now(tmp_path, monkeypatch):
    seen = []
    for value in ("first", "second"):
        monkeypatch.setenv("MEGASELECT_CACHE", str(tmp_path / value))
        with Children() as some:
            seen.append(some.ask(TrainJob(endings.no_such_data(CONFIG).to_dict(), 1, 1, 1, False)).failure)
    assert seen[0] == seen[1]
    assert "/absent" in seen[0]


@pytest.mark.parametrize(
    ("device", "gpu", "begins"),
    [("cpu", "h100-80gb", "forkserver"), ("auto", None, "forkserver"), ("auto", "h100-80gb", "spawn")],
)
def test_what_may_use_a_gpu_begins_from_nothing(device, gpu, begins, monkeypatch):
    monkeypatch.setattr(children, "first_gpu", lambda: gpu and find_gpu(gpu))
    task = BatchJob({"training": {"device": device}}, (), None, "log")
    assert context_for(task).get_start_method() == begins


def searching(limit, ending):
    """A child that tries as the real one does, and ends by `ending` at the first size beyond the limit."""
    processes = []

    def ask(job: BatchJob):
        search, lines = children.search_after(4, job.outcomes), []
        processes.append(job.outcomes)
        while (size := search.next_size()) is not None:
            lines.append(f"{size} begins\n")
            if size > limit:
                break
            lines.append(f"{size} fits\n")
            search.record(size, "")
        children.Path(job.log_path).write_text("".join(lines))
        return ending if size is not None else Answer()

    return largest_micro_batch(ask, CONFIG.to_dict(), 4, None), processes


def test_each_failure_is_followed_by_a_fresh_process_that_knows_it():
    found, processes = searching(21, Answer(failure="no room"))
    assert found == (21, "no room")
    assert processes[0] == ()
    assert [outcomes[-1] for outcomes in processes[1:]] == [(size, "no room") for size in (32, 24, 22)]
    assert (20, "") in processes[3]


def test_a_process_that_dies_in_the_search_did_not_have_the_memory():
    assert searching(3, Answer())[0] == (3, "out of memory")


def test_a_search_that_never_begins_says_why():
    failing = Answer(failure="no such data", shared=True)
    assert largest_micro_batch(lambda task: failing, CONFIG.to_dict(), 4, None) == (0, "no such data")
