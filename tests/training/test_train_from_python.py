"""megaselect.train: the command's run as a function, heard by callbacks, that leaves its caller's process as it was."""

import json
import os
import signal
import threading
import warnings

import numpy as np
import pytest
import torch
from recorder import At, Recorder, exact

import megaselect
from megaselect import Callback, Config
from megaselect.errors import CallbackError, ConfigError, NonFiniteError, RunDirectoryError
from megaselect.training.run_record import read_segments

pytestmark = pytest.mark.usefixtures("without_wandb")

STEPS = 6


@pytest.fixture
def config(make_config, dataset, tmp_path):
    """`config(run's name, **overrides)`: six small steps on random tokens, evaluated at 3 and 6."""

    def make(name="run", **overrides):
        own = {"training__max_steps": STEPS, "training__eval_interval": 3, "training__eval_samples": 4}
        own |= {"data__prefix": str(dataset), "training__run_dir": str(tmp_path / name), "logging__wandb": "disabled"}
        return make_config(**(own | overrides))

    return make


def test_it_trains_as_the_command_does_to_the_bit(run_child, read_metrics, read_tensors, capfd, tmp_path):
    child = run_child("--max-steps", STEPS, "--recompute", "selective", "--device", "cpu", "--run-dir", tmp_path / "a")
    assert (child.returncode, child.stderr) == (0, "")
    own = {"training.run_dir": str(tmp_path / "b")}
    summary = megaselect.train(Config.from_yaml(tmp_path / "a/config.yaml", own))
    assert exact(read_metrics(tmp_path / "b")) == exact(read_metrics(tmp_path / "a"))
    tensors, expected = (read_tensors(tmp_path / name, STEPS) for name in ("b", "a"))
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].equal(expected[name]) for name in expected)
    contents = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert contents[0] == contents[1]
    last = read_metrics(tmp_path / "a")[-1]
    assert (summary.steps, summary.stopped_by, summary.run_dir) == (STEPS, None, str(tmp_path / "b"))
    assert (summary.final_loss, summary.valid_loss) == (last["loss"], last["valid_loss"])
    assert capfd.readouterr() == ("", "")


def test_callbacks_hear_every_event_in_order_with_what_the_run_writes(config, read_metrics, tmp_path):
    first, second = Recorder(), Recorder()
    summary = megaselect.train(config(), callbacks=[first, second])
    assert first.names == ["start", "saved", *["step"] * 3, "evaluation", *["step"] * 3, "evaluation", "finish"]
    lines = read_metrics(tmp_path / "run")
    losses = {line["step"]: line.pop("valid_loss") for line in lines if "valid_loss" in line}
    assert first.told("step") == lines
    assert dict(first.told("evaluation")) == losses
    assert first.told("finish") == [summary]
    (header,), (report,) = first.told("start"), first.told("saved")
    assert (header.run_dir, header.first_step, header.max_steps) == (str(tmp_path / "run"), 0, STEPS)
    assert "note: dropout_p 0.1 is 0.1016 here: probabilities are multiples of 1/256" in header.notes
    assert report.matches
    assert {line["saved_bytes"] for line in lines} == {report.measured_total}
    assert second.events == first.events


def test_what_a_callback_does_to_its_metrics_stays_with_it(config, read_metrics, tmp_path):
    class Vandal(Callback):
        def on_step(self, metrics):
            metrics.clear()

    after = Recorder()
    megaselect.train(config(), callbacks=[Vandal(), after])
    assert [len(line) > 10 for line in read_metrics(tmp_path / "run")] == [True] * STEPS
    assert [metrics["step"] for metrics in after.told("step")] == [1, 2, 3, 4, 5, 6]


def test_the_console_prints_what_the_command_prints_where_it_is_asked_for(config, capfd):
    megaselect.train(config(), console=True)
    printed, errors = capfd.readouterr()
    assert errors == ""
    for part in ("megaselect python\n", "equal to the byte", "eval 6/6  valid loss", "finished\n"):
        assert printed.count(part) == 1


def test_what_the_config_records_is_recorded_and_its_notes_are_told(config, tmp_path):
    heard = Recorder()
    megaselect.train(config(logging__wandb="offline", logging__tensorboard=True), callbacks=[heard])
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    assert [note.partition(";")[0] for note in heard.told("note")] == ["wandb: offline"]


def test_a_callback_stops_the_run_which_goes_on_from_there_to_the_same_bits(config, assert_same_run, tmp_path):
    def stop(callback):
        callback.should_stop = True

    early, heard = At(2, stop), Recorder()
    summary = megaselect.train(config(), callbacks=[early, heard])
    assert (summary.steps, summary.stopped_by, summary.interrupted) == (2, "callback", False)
    assert heard.names == ["start", "saved", "step", "step", "finish"]
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000002"]
    assert [(part.state, part.reason) for part in read_segments(tmp_path / "run")] == [("stopped", "callback")]
    assert early.should_stop
    assert megaselect.train(config(), callbacks=[early]).stopped_by is None  # begins without the wish of the last run
    megaselect.train(config("whole"))
    assert_same_run(tmp_path / "run", tmp_path / "whole", STEPS)


def test_a_run_that_is_stopped_as_it_starts_takes_no_step(config):
    class Never(Recorder):
        def on_start(self, header):
            self.should_stop = True

    summary = megaselect.train(config(), callbacks=[Never()])
    assert (summary.steps, summary.final_loss, summary.stopped_by) == (0, None, "callback")


def test_the_console_says_that_a_callback_stopped_the_run(config, capsys):
    class Never(Callback):
        def on_start(self, header):
            self.should_stop = True

    megaselect.train(config(), callbacks=[Never()], console=True)
    printed = capsys.readouterr().out
    assert "\nstopped by a callback\n" in printed
    assert "to continue" not in printed


def test_ctrl_c_saves_and_returns_a_summary(config, read_metrics, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    heard, interrupt = Recorder(), At(3, lambda _: signal.raise_signal(signal.SIGINT))
    summary = megaselect.train(config(), callbacks=[interrupt, heard])
    assert (summary.steps, summary.stopped_by, summary.interrupted) == (3, "SIGINT", True)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "run/checkpoints/step-00000003/manifest.json").exists()
    assert len(read_metrics(tmp_path / "run")) == 3
    assert heard.told("finish") == [summary]


def test_a_second_ctrl_c_ends_the_run_at_once(config):
    before = signal.getsignal(signal.SIGINT)

    def twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    heard = Recorder()
    with pytest.raises(KeyboardInterrupt):
        megaselect.train(config(), callbacks=[heard, At(2, twice)])
    assert signal.getsignal(signal.SIGINT) is before
    assert (heard.names[-1], heard.told("fail")) == ("fail", ["KeyboardInterrupt"])


def test_two_runs_in_a_process_are_the_same_run(config, assert_same_run, tmp_path):
    first, second = (megaselect.train(config(name)) for name in ("a", "b"))
    assert_same_run(tmp_path / "b", tmp_path / "a", STEPS)
    assert (first.final_loss, first.sample) == (second.final_loss, second.sample)


def test_a_second_run_in_a_directory_goes_on_where_the_first_one_ended(config, assert_same_run, tmp_path):
    megaselect.train(config(training__max_steps=4, training__schedule="constant"))
    heard = Recorder()
    again = megaselect.train(config(training__schedule="constant"), callbacks=[heard])
    assert [metrics["step"] for metrics in heard.told("step")] == [5, 6]
    assert "note: continuing from step 4" in heard.told("start")[0].notes
    assert again.steps == STEPS
    megaselect.train(config("whole", training__schedule="constant"))
    assert_same_run(tmp_path / "run", tmp_path / "whole", STEPS)


def test_off_the_main_thread_it_trains_to_the_same_bits_without_handlers(config, assert_same_run, tmp_path):
    handlers, seen, summaries = signal.getsignal(signal.SIGTERM), [], []
    look = At(2, lambda _: seen.append((signal.getsignal(signal.SIGTERM), threading.current_thread())))
    thread = threading.Thread(target=lambda: summaries.append(megaselect.train(config("thread"), callbacks=[look])))
    thread.start()
    thread.join()
    assert [summary.steps for summary in summaries] == [STEPS]
    assert seen == [(handlers, thread)]
    megaselect.train(config("main"))
    assert_same_run(tmp_path / "thread", tmp_path / "main", STEPS)


@pytest.fixture
def unusual_settings(monkeypatch):
    """A caller's process with none of torch's settings as in a new one."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: None)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


def settings():
    return (
        *(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        *(torch.get_default_dtype(), torch.is_grad_enabled(), warnings.showwarning, list(warnings.filters)),
        *(os.environ.get("CUBLAS_WORKSPACE_CONFIG"), *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))),
        *(torch.initial_seed(), os.getcwd(), threading.active_count()),
    )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("unusual_settings")
def test_the_process_is_afterwards_as_it_was(config, deterministic, fails):
    inside = []

    def act(_):
        inside.append((torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()))
        if fails:
            raise ValueError("enough")

    torch.manual_seed(7)
    torch.randn(3)
    before, random, numpys = settings(), torch.get_rng_state(), np.random.get_state()[1]
    expected = torch.randn(5)
    torch.set_rng_state(random)
    try:
        megaselect.train(config(training__deterministic=deterministic), callbacks=[At(2, act)])
    except CallbackError:
        assert fails
    assert inside == [(deterministic, torch.float32)]
    assert settings() == before
    assert torch.get_rng_state().equal(random)
    assert (np.random.get_state()[1] == numpys).all()
    assert torch.randn(5).equal(expected)


@pytest.mark.usefixtures("unusual_settings")
@pytest.mark.soak
def test_the_callers_settings_change_no_bit(config, run_child, read_metrics, tmp_path):
    megaselect.train(config(training__warmup_steps=2))
    child = run_child("--config", tmp_path / "run/config.yaml", "--run-dir", tmp_path / "command")
    assert (child.returncode, child.stderr) == (0, "")
    assert exact(read_metrics(tmp_path / "run")) == exact(read_metrics(tmp_path / "command"))


def test_a_warning_of_the_run_is_a_note(config):
    heard = Recorder()
    megaselect.train(config(), callbacks=[heard, At(1, lambda _: warnings.warn("look here", stacklevel=1))])
    assert heard.told("note") == ["look here"]


METHODS = ("on_start", "on_saved", "on_step", "on_evaluation", "on_note", "on_finish")


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_of_a_callback_ends_the_run_with_its_name_and_its_traceback(config, method, tmp_path):
    problem = KeyError("no such thing")

    def fail(self, *_):
        raise problem

    broken, heard = type("Broken", (Callback,), {method: fail})(), Recorder()
    noted = At(1, lambda _: warnings.warn("look here", stacklevel=1))
    with pytest.raises(CallbackError) as raised:
        megaselect.train(config(), callbacks=[heard, broken, noted])
    message = (
        f"Broken.{method} raised KeyError: 'no such thing'; the run ended there: mend the callback, and train again"
    )
    assert str(raised.value) == message
    assert raised.value.__cause__ is problem
    assert [entry.name for entry in raised.traceback][-1] == "_call"
    (part,) = read_segments(tmp_path / "run")
    if method == "on_finish":  # the run was done
        assert (part.state, heard.names[-1]) == ("finished", "finish")
    else:
        assert (part.state, part.reason, heard.told("fail")) == ("failed", message, [f"CallbackError: {message}"])


def test_an_exception_in_on_fail_hides_neither_the_runs_own_nor_others_news(config):
    class Broken(Callback):
        def on_step(self, metrics):
            raise ValueError("first")

        def on_fail(self, reason):
            raise ValueError("second")

    heard = Recorder()
    with pytest.raises(CallbackError, match=r"^Broken\.on_step raised ValueError: first;"):
        megaselect.train(config(), callbacks=[Broken(), heard])
    assert len(heard.told("fail")) == 1


def test_errors_of_the_run_are_those_that_the_command_tells_in_a_line(config, tmp_path):
    heard = Recorder()
    with pytest.raises(NonFiniteError, match=r"^step 2: the loss is nan"):
        megaselect.train(config(training__lr=1e30, training__save_interval=0), callbacks=[heard])
    assert [reason.partition(":")[0] for reason in heard.told("fail")] == ["NonFiniteError"]
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunDirectoryError):
        megaselect.train(config("taken"))


@pytest.mark.parametrize("given", ["tiny", {"model": {}}, None])
def test_what_is_no_config_is_refused(given):
    with pytest.raises(ConfigError, match=r"must be a Config, such as Config\.from_yaml\('tiny'\)$"):
        megaselect.train(given)


@pytest.mark.parametrize("given", [Callback(), [Callback], [print], "callback", None])
def test_what_are_no_callbacks_is_refused_before_the_run_begins(config, given, tmp_path):
    with pytest.raises(CallbackError, match=r"must be a list of objects of megaselect\.Callback's subclasses$"):
        megaselect.train(config(), callbacks=given)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_directory_gets_a_new_one_in_runs(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    summary = megaselect.train(config(training__run_dir=None, training__max_steps=1))
    assert summary.run_dir.startswith("runs/python-none-")
    assert json.loads((tmp_path / summary.run_dir / "run.json").read_text())["segments"][0]["state"] == "finished"
