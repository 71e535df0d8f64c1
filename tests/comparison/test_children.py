"""How the parent reads its children, and how they begin. Shell scripts stand in for Python: what counts is the end."""

import json

import pytest
from measurements import CONFIG

from megaselect.comparison import children, nursery
from megaselect.comparison.children import Children, largest_micro_batch
from megaselect.comparison.measurement import Answer, BatchJob, TrainJob

TASK = TrainJob(CONFIG.to_dict(), 1, 1, 1, False)


def shell(tmp_path, monkeypatch, script):
    """Python, from now on, is this shell script."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(path))


def nursery_that(body):
    """Does `body` for each line; $task, $answer and $log are its paths."""
    fields = {"task": 2, "answer": 4, "log": 6}
    cut = "; ".join(f'{name}=$(echo "$line" | cut -d\'"\' -f{field})' for name, field in fields.items())
    return f"while read -r line; do {cut}; {body}; done"


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("echo -9", "out of memory: the system ended the process"),
        ("echo -11", "the process ended by SIGSEGV"),
        ("printf 'first\nlast\n' > $log; echo 3", "the process ended with code 3: last"),
        (
            "echo 'cannot allocate memory for thread-local data: ABORT' > $log; echo 127",
            "out of memory: cannot allocate memory for thread-local data: ABORT",
        ),
        ("echo 0", "the process ended with code 0: it said nothing"),
        ("echo '{\"measurement\": 1}' > $answer; echo 0", "the process ended with code 0: it said nothing"),
        ("echo broken >&2; exit 7", "the process ended with code 7: broken"),
    ],
)
def test_a_process_that_dies_is_an_answer(body, failure, tmp_path, monkeypatch):
    shell(tmp_path, monkeypatch, nursery_that(body))
    with Children() as some:
        assert some.ask(TASK) == Answer(failure=failure)
        assert some.ask(TASK) == Answer(failure=failure)


def test_the_task_is_on_disk_and_each_answer_is_read_once(tmp_path, monkeypatch):
    first = f'[ -f {tmp_path}/seen ] || echo \'{{"failure": "no", "shared": true}}\' > $answer'
    shell(tmp_path, monkeypatch, nursery_that(f"{first}; cp $task {tmp_path}/seen; echo 0"))
    with Children() as some:
        assert some.ask(TASK) == Answer(failure="no", shared=True)
        assert some.ask(TASK).failure == "the process ended with code 0: it said nothing"
    assert json.loads((tmp_path / "seen").read_text())["steps"] == 1


def test_a_copy_of_the_nursery_ends_with_its_code_and_its_last_words(tmp_path, monkeypatch, capfd):
    def work(task_path, answer_path):
        if task_path == "killed":
            nursery.os.kill(nursery.os.getpid(), 9)
        print("nothing but an exit code may be on the nursery's own output")
        if task_path == "broken":
            raise RuntimeError("broken")

    monkeypatch.setattr(nursery.worker, "main", work)
    log = tmp_path / "log"
    with capfd.disabled():
        assert [nursery._fork(task, "", str(log)) for task in ("killed", "fine", "broken")] == [-9, 0, 1]
    assert capfd.readouterr() == ("", "")
    assert log.read_text().splitlines()[-1] == "RuntimeError: broken"


def test_a_process_from_nothing_ends_with_its_code_and_its_last_words(tmp_path, monkeypatch):
    shell(tmp_path, monkeypatch, 'echo "$@" >&2; exit 5')
    log = tmp_path / "log"
    assert nursery._start("task", "answer", str(log)) == 5
    assert log.read_text() == "-m megaselect.comparison.worker task answer\n"


@pytest.mark.parametrize(
    ("device", "has_cuda", "forks"),
    [("cpu", True, True), ("auto", False, True), ("auto", True, False), ("cuda", True, False)],
)
def test_what_may_use_a_gpu_begins_from_nothing(device, has_cuda, forks, tmp_path, monkeypatch):
    monkeypatch.setattr(nursery.torch.backends.cuda, "is_built", lambda: has_cuda)
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"config": {"training": {"device": device}}}))
    assert nursery._may_fork(str(path)) == forks


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
