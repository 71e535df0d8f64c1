"""How the parent reads its children. The programs here stand in for Python: what counts is how they end."""

import json

import pytest
from measurements import CONFIG

from megaselect.comparison import children
from megaselect.comparison.measurement import Answer, BatchJob, Task, TrainJob

TASK = Task(train=TrainJob(CONFIG.to_dict(), 1, 1, 1, False))


def program(tmp_path, monkeypatch, body):
    """Children run `body` as a shell script; $3 and $4 are the task's and the answer's path."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(path))


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("kill -KILL $$", "out of memory: the system ended the process"),
        ("kill -SEGV $$", "the process ended by SIGSEGV"),
        ("echo first >&2; echo last >&2; exit 3", "the process ended with code 3: last"),
        ("exit 0", "the process ended with code 0: it said nothing"),
        ("echo '{\"measurement\": 1}' > $4", "the process ended with code 0: it said nothing"),
    ],
)
def test_a_process_that_dies_is_an_answer(body, failure, tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, body)
    assert children.ask(TASK) == Answer(failure=failure)


def test_the_task_is_on_disk_and_the_answer_is_read(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, f'cp $3 {tmp_path}/task.json; echo \'{{"failure": "no", "shared": true}}\' > $4')
    assert children.ask(TASK) == Answer(failure="no", shared=True)
    assert json.loads((tmp_path / "task.json").read_text())["train"]["steps"] == 1


def searching(monkeypatch, limit, ending):
    """A child that tries as the real one does, and ends by `ending` at the first size beyond the limit."""
    processes = []

    def ask(task):
        job: BatchJob = task.batch
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

    monkeypatch.setattr(children, "ask", ask)
    return children.largest_micro_batch(CONFIG.to_dict(), 4, None), processes


def test_each_failure_is_followed_by_a_fresh_process_that_knows_it(monkeypatch):
    found, processes = searching(monkeypatch, 21, Answer(failure="no room"))
    assert found == (21, "no room")
    assert processes[0] == ()
    assert [outcomes[-1] for outcomes in processes[1:]] == [(size, "no room") for size in (32, 24, 22)]
    assert (20, "") in processes[3]


def test_a_process_that_dies_in_the_search_did_not_have_the_memory(monkeypatch):
    assert searching(monkeypatch, 3, Answer())[0] == (3, "out of memory")


def test_a_search_that_never_begins_says_why(monkeypatch):
    monkeypatch.setattr(children, "ask", lambda task: Answer(failure="no such data", shared=True))
    assert children.largest_micro_batch(CONFIG.to_dict(), 4, None) == (0, "no such data")
