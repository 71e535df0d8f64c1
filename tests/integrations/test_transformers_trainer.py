"""RecomputeCallback in the real Trainer: losses and weights of training without it by the bit, bytes in the log."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from megaselect import recompute
from megaselect.errors import RecomputeError
from megaselect.ledger import record
from megaselect.units import parse_size

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

import transformers
from small_training import BATCH, LENGTH, SETTINGS, Samples, assert_same, copies, gpt2

from megaselect.integrations.transformers import SAVED_BYTES, RecomputeCallback


def collated():
    return transformers.default_data_collator([Samples()[number] for number in range(BATCH)])


def a_batch():
    """With what the Trainer adds."""
    return {**collated(), "num_items_in_batch": torch.tensor(2.0 * BATCH * (LENGTH - 1))}


def trainer_of(folder, callback=None, model=None, **options):
    options = {
        "max_steps": 4,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        **options,
    }
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **options,
    )
    return transformers.Trainer(
        gpt2() if model is None else model,
        arguments,
        train_dataset=Samples(),
        eval_dataset=Samples(),
        callbacks=[callback] if callback else [],
    )


def results(trainer):
    """What training gave: every loss of the log, and the weights."""
    losses = [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]
    return [torch.tensor(losses), *copies(trainer.model.parameters())]


def train(folder, callback=None, model=None, resume=None, **options):
    trainer = trainer_of(folder, callback, model, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer):
    return [entry[SAVED_BYTES] for entry in trainer.state.log_history if SAVED_BYTES in entry]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Results without the callback; options -> trained once."""
    done = {}

    def of(**options):
        key = tuple(sorted(options.items()))
        if key not in done:
            done[key] = results(train(tmp_path_factory.mktemp("untouched"), **options))
        return done[key]

    return of


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_bits_of_training_without_it(tmp_path, untouched, setting, options):
    callback = RecomputeCallback(setting)
    trainer = train(tmp_path, callback, **options)
    assert_same(untouched(**options), results(trainer))
    plan = callback.plan
    assert (plan.recorded, plan.followed, plan.departed, plan.unproved) == (1, 7, 0, {})
    assert len(untouched(**options)[0]) == 6  # 4 of training, 2 of evaluation in between


@pytest.mark.parametrize("setting", SETTINGS)
def test_bytes_in_the_log_are_those_predicted_and_saved(tmp_path, setting):
    callback = RecomputeCallback(setting)
    trainer = train(tmp_path, callback)
    plan = recompute(gpt2().train(), setting)
    predicted = plan.predict(**a_batch())
    with record(plan.model) as ledger:
        plan.model(**a_batch())
    assert logged(trainer) == [predicted] * 4 == [ledger.total] * 4
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert all(SAVED_BYTES not in entry for entry in evaluations)


def test_nothing_is_left_on_the_model(tmp_path):
    with_it, without = (train(tmp_path, callback).model for callback in (RecomputeCallback("full"), None))
    assert set(vars(with_it)) == set(vars(without))
    assert not with_it._forward_pre_hooks
    assert not with_it._forward_hooks
    recompute(with_it, "selective").undo()  # refused where a plan is left


def test_a_checkpoint_is_gone_on_from(tmp_path, untouched):
    train(tmp_path, RecomputeCallback("selective"), save_strategy="steps", save_steps=2)
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert all(entry[SAVED_BYTES] > 0 for entry in state["log_history"] if "loss" in entry)
    callback = RecomputeCallback("full")
    trainer = train(tmp_path, callback, resume=str(tmp_path / "checkpoint-2"), save_strategy="steps", save_steps=2)
    assert_same(untouched(save_strategy="steps", save_steps=2), results(trainer))
    assert callback.plan.recorded + callback.plan.followed == 4  # two steps of two micro-batches


def test_a_budget_is_held_by_a_model_that_came_in_evaluation_mode(tmp_path, untouched):
    budget = "200KiB"
    callback = RecomputeCallback(saved=budget, batch=collated())
    trainer = train(tmp_path, callback, model=gpt2().eval())
    assert_same(untouched(), results(trainer))
    assert len(logged(trainer)) == 4
    assert 0.8 * parse_size(budget, "") < max(logged(trainer)) <= parse_size(budget, "")


def test_parts_of_a_model_have_settings(tmp_path, untouched):
    callback = RecomputeCallback({"transformer.h.0": "full", "transformer.h.1": "selective"})
    assert_same(untouched(), results(train(tmp_path, callback)))


def test_training_again_after_an_exception(tmp_path, untouched):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyError("stop")

    callback, stop = RecomputeCallback("selective"), Stop()
    trainer = trainer_of(tmp_path, callback)
    trainer.add_callback(stop)
    with pytest.raises(KeyError, match="stop"):
        trainer.train()
    trainer.remove_callback(stop)
    trainer.train()  # a plan that were left would be refused
    assert logged(trainer)[-1] == callback.plan.bytes


def test_reporters_moved_behind_it_are_told(tmp_path):
    class Reporter(transformers.TrainerCallback):
        def __init__(self):
            self.told = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                self.told.append(SAVED_BYTES in logs)

    class Early(Reporter):
        pass

    callback = RecomputeCallback("full")
    trainer = trainer_of(tmp_path, max_steps=1)
    for one in (Early(), Reporter(), callback):
        trainer.add_callback(one)
    trainer.add_callback(trainer.pop_callback(Early))
    reporters = [one for one in trainer.callback_handler.callbacks if isinstance(one, Reporter)]
    trainer.train()
    assert {type(one).__name__: one.told for one in reporters} == {"Reporter": [False], "Early": [True]}


def test_beside_transformers_own_checkpointing_it_says_so(tmp_path, untouched):
    callback = RecomputeCallback("selective")
    with pytest.warns(UserWarning, match="checkpoints layers of the model as well"):
        trainer = train(tmp_path, callback, gradient_checkpointing=True)
    assert_same(untouched(gradient_checkpointing=True), results(trainer))


NOT_FOLLOWED = "no forward pass of the first step has gone through the plan"


def test_a_loss_that_calls_parts_of_the_model_saves_everything_and_it_says_so(tmp_path):
    class OfParts(transformers.Trainer):
        def compute_loss(self, model, inputs, **_):
            return model.lm_head(model.transformer(inputs["input_ids"])[0]).logsumexp(-1).mean()

    made = trainer_of(tmp_path, max_steps=1, eval_strategy="no")
    trainer = OfParts(made.model, made.args, train_dataset=Samples(), callbacks=[RecomputeCallback("selective")])
    with pytest.warns(UserWarning, match=NOT_FOLLOWED):
        trainer.train()
    assert logged(trainer) == []


@pytest.mark.soak
@pytest.mark.compiles
def test_a_model_compiled_as_a_whole_saves_everything_and_it_says_so(tmp_path):
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 2, "eval_strategy": "no"}
    with pytest.warns(UserWarning, match=NOT_FOLLOWED):
        trainer = train(tmp_path / "with", RecomputeCallback("selective"), **compiled)
    assert logged(trainer) == []
    torch.compiler.reset()
    assert_same(results(train(tmp_path / "without", **compiled)), results(trainer))


def test_no_warning_where_nothing_is_wrong(tmp_path):
    for setting in ("none", "selective"):
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            train(tmp_path, RecomputeCallback(setting), max_steps=1)
        assert [str(one.message) for one in met if "RecomputeCallback" in str(one.message)] == []


def test_copies_in_threads_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, RecomputeCallback("selective"))
    trainer.args._n_gpu = 2
    with pytest.raises(RecomputeError, match="a thread for each of 2 GPUs"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"setting": "selectiv"}, "selectiv"),
        ({"saved": "1MiB"}, "with a batch"),
        ({"memory": "64KiB", "batch": collated()}, "too little"),
    ],
)
def test_what_recompute_refuses_is_refused(tmp_path, options, said):
    with pytest.raises(RecomputeError, match=said):
        train(tmp_path, RecomputeCallback(**options))


@pytest.mark.soak
def test_two_processes(tmp_path):
    script = Path(__file__).parent / "trainer_on_ranks.py"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path]
    subprocess.run([sys.executable, *launch], check=True, timeout=300)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert list(found) == SETTINGS
        for same, saved, expected in found.values():
            assert same
            assert saved == [expected] * 3
