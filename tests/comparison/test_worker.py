"""The worker in this process, against the trainer and against its own failures; and one child with little memory."""

import json

import pytest
from pydantic import TypeAdapter

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.flags import CommandFlags, parse_run_args
from megaselect.cli.main import main as megaselect
from megaselect.comparison import worker
from megaselect.comparison.children import Children, largest_micro_batch
from megaselect.comparison.measurement import Answer, BatchJob
from megaselect.config import Config


@pytest.fixture
def config(tiny_flags):
    return parse_run_args(tiny_flags, CommandFlags("test", "", "", SETTINGS_OF_COMMAND["compare"])).config


def answered(tmp_path, config, **overrides):
    changed = Config.from_dict(
        config.to_dict(), overrides={name.replace("__", "."): value for name, value in overrides.items()}
    )
    task = {"config": changed.to_dict(), "round": 1, "steps": 2, "warmup_steps": 1, "with_timeline": True}
    (tmp_path / "task.json").write_text(json.dumps(task))
    worker.main(str(tmp_path / "task.json"), str(tmp_path / "answer.json"))
    return TypeAdapter(Answer).validate_json((tmp_path / "answer.json").read_bytes())


def test_its_steps_are_those_of_train(tmp_path, config, tiny_flags):
    found = answered(tmp_path, config).measurement
    flags = [*tiny_flags, "--run-dir", str(tmp_path / "run"), "--training.eval-interval", "0"]
    assert megaselect(["train", *flags, "--training.save-interval", "0"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == list(found.losses)
    assert [line["grad_norm"] for line in lines] == list(found.grad_norms)
    assert {line["saved_bytes"] for line in lines} == {found.saved.measured}


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_predictions_are_what_is_measured(tmp_path, config, recompute):
    found = answered(tmp_path, config, recompute__mode=recompute).measurement
    assert found.saved.measured == found.saved.predicted == sum(found.saved.measured_by_name.values())
    assert found.saved.measured_by_name == found.saved.predicted_by_name
    assert found.saved.measured_per_layer == found.saved.predicted_per_layer
    # Not all of what is predicted beside the tensors: the scaled loss and the gradients of the losses, scalars each.
    assert 0 <= found.predicted_peak_bytes - found.peak.allocated <= 5 * 4
    assert max(point.bytes for point in found.timeline) == found.peak.allocated
    assert found.peak.rss > found.peak.allocated


def test_the_phases_add_up_to_no_more_than_the_step(tmp_path, config):
    samples = answered(tmp_path, config).measurement.samples
    assert [(sample.round, sample.step) for sample in samples] == [(1, 2), (1, 3)]
    for sample in samples:
        phases = (sample.forward_seconds, sample.backward_seconds, sample.optimizer_seconds)
        assert all(seconds > 0 for seconds in phases)
        assert sum(phases) < sample.seconds


@pytest.mark.parametrize(
    ("overrides", "failure", "shared"),
    [
        (
            {"recompute__mode": "selective", "model__dropout_p": 0.0},
            "recompute selective with modules softmax dropout would save nothing: dropout_p is 0, so there are no "
            "masks, and scores would be kept in place of probs",
            False,
        ),
        ({"data__prefix": "/absent"}, "/absent", True),
        ({"model__ffn_hidden_size": 2**40}, "out of memory", False),  # 140 TB: no machine's address space
    ],
)
def test_failures_are_answers(tmp_path, config, overrides, failure, shared):
    found = answered(tmp_path, config, **overrides)
    assert (found.measurement, found.shared) == (None, shared)
    assert failure in found.failure


@pytest.fixture(scope="module")
def ask():
    with Children() as some:
        yield some.ask


def is_memory(failure):
    """In torch's words, or in the C library's where a library's thread is the first to meet the limit (torch 2.11)."""
    return failure in ("out of memory", "out of memory: cannot allocate memory for thread-local data: ABORT")


def test_a_micro_batch_beyond_the_limit_ends_the_process_and_is_logged(tmp_path, config, ask):
    log = tmp_path / "log"
    outcomes = ((2, ""), (4096, "out of memory"))  # the next size is in the middle, 2049: 0.5 GB of probs a layer
    job = BatchJob(config.to_dict(), outcomes, 600 * 2**20, str(log))
    assert is_memory(ask(job).failure)
    assert log.read_text() == "2049 begins\n"


@pytest.mark.soak
def test_the_largest_micro_batch_within_a_limit(config, ask):
    small, beyond = largest_micro_batch(ask, config.to_dict(), 2, 600 * 2**20)
    recomputing = Config.from_dict(config.to_dict(), overrides={"recompute.mode": "full"})
    large, _ = largest_micro_batch(ask, recomputing.to_dict(), 2, 600 * 2**20)
    assert is_memory(beyond)
    assert large > small > 0


def test_a_job_that_fits_says_so(tmp_path, config):
    log = tmp_path / "log"
    job = BatchJob(config.to_dict(), ((2, ""), (5, "out of memory")), None, str(log))
    task = tmp_path / "task.json"
    task.write_text(json.dumps(vars(job)))
    worker.main(str(task), str(tmp_path / "answer.json"))
    assert TypeAdapter(Answer).validate_json((tmp_path / "answer.json").read_bytes()) == Answer()
    assert log.read_text() == "3 begins\n3 fits\n4 begins\n4 fits\n"
