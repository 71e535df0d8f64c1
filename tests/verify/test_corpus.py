"""megaselect.verify on the corpus: real architectures and wrappers pass, seeded silent faults are found by name."""

import functools

import pytest
import torch
from corpus.architectures import all_architectures
from corpus.catalogue import FAULTS
from corpus.hugging_face import REAL_FAULTS, WAYS
from corpus.outcome import found, missing, report_of, sentence
from corpus.variants import VARIANTS, case_of, cells
from corpus.wrappers import WRAPPERS

NAMES = [architecture.name for architecture in all_architectures()]
ALWAYS = "non-reentrant"
CELLS = {f"{one.name}, {way}, {variant}": (one, way, variant) for one, way, variant in cells()}
PER_ARCHITECTURE = 2 * len(VARIANTS)
IN_TURN = [way for way in WAYS if way != ALWAYS]


def skip_without(reason):
    if reason:
        pytest.skip(reason)


def check_architecture(number, way):
    architecture = all_architectures()[number]
    report = report_of(functools.partial(architecture.case, WAYS[way]))
    fault = REAL_FAULTS.get((architecture.name, way))
    if fault is None:
        assert report.passed, str(report)
    else:
        assert not report.passed
        assert fault in {check.name for _, check in report.failures()}, str(report)


every_architecture = pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)


@every_architecture
def test_an_architecture_with_torch_s_default_checkpoint(number):
    check_architecture(number, ALWAYS)


@pytest.mark.parametrize("number", range(0, len(NAMES), 4), ids=NAMES[::4])
def test_every_fourth_architecture_in_one_other_way(number):
    check_architecture(number, IN_TURN[number // 4 % len(IN_TURN)])


@pytest.mark.soak
@every_architecture
@pytest.mark.parametrize("way", IN_TURN)
def test_every_architecture_in_every_other_way(number, way):
    check_architecture(number, way)


def check_cell(name):
    report = report_of(functools.partial(case_of, *CELLS[name]))
    assert report.passed, str(report)


@pytest.mark.parametrize("name", list(CELLS)[:: 4 * PER_ARCHITECTURE - 1])  # another variant of every fourth one
def test_other_precisions_and_frozen_parameters_pass(name):
    check_cell(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", CELLS)
def test_every_precision_and_frozen_parameters_pass(name):
    check_cell(name)


@pytest.mark.parametrize("name", WRAPPERS)
def test_right_wrappers_pass(name):
    wrapper = WRAPPERS[name]
    skip_without(missing(wrapper.needs, wrapper.torch))
    report = report_of(wrapper.make)
    assert report.passed, str(report)
    assert report.subjects[0].figures["rerun"], "nothing ran again, so nothing was tried"


@pytest.mark.parametrize("name", ["torch, non-reentrant", "torch, reentrant", "torch, selective", "torch, composable"])
def test_torch_is_afterwards_as_it_was(name):
    homes = (torch.utils.checkpoint, torch.autograd.graph.saved_tensors_hooks, torch.autograd.Function)
    before = [dict(vars(home)) for home in homes]
    report_of(WRAPPERS[name].make)
    after = [dict(vars(home)) for home in homes]
    changed = [key for old, new in zip(before, after, strict=True) for key in new if new[key] is not old.get(key)]
    assert changed == []


@pytest.mark.parametrize("name", FAULTS)
class TestFaults:
    def test_is_found_and_named(self, name):
        fault = FAULTS[name]
        skip_without(missing(fault.needs))
        report = report_of(fault.wrong)
        check = found(report, fault.check)
        assert not report.passed, str(report)
        assert sentence(check).startswith(f"failed {fault.check}"), str(report)
        assert fault.says in check.detail

    def test_is_not_raised_by_torch(self, name):
        fault = FAULTS[name]
        skip_without(missing(fault.needs))
        model, batch, loss_fn = fault.wrong()
        loss = step(model, batch, loss_fn)
        if loss.requires_grad:
            loss.backward()
        assert loss.isfinite()  # nor does its value say anything

    def test_passes_when_it_is_mended(self, name):
        fault = FAULTS[name]
        skip_without(missing(fault.needs))
        report = report_of(fault.right)
        assert report.passed, str(report)


def step(model, batch, loss_fn):
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    loss = loss_fn(output) if loss_fn else output
    return getattr(loss, "loss", loss)
