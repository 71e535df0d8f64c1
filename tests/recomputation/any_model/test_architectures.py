"""megaselect.recompute on architectures of Hugging Face: same bits, known bytes, and later passes follow the first."""

import pytest
import torch
from architecture_steps import SETTINGS, bytes_without_recompute, cell
from architectures import ALL_ARCHITECTURES, batch_of, build, loss_of

import megaselect
from megaselect.errors import RecomputeError

FEW = ("gpt2", "llama", "mixtral, eager", "t5")  # a shape each; all of them in the soak
NAMES = [pytest.param(name, marks=() if name in FEW else pytest.mark.soak) for name in ALL_ARCHITECTURES]
architecture = pytest.mark.parametrize("name", NAMES)
every_setting = pytest.mark.parametrize("setting", SETTINGS)


@architecture
@every_setting
def test_two_steps_have_the_bits_of_the_untouched_model(name, setting):
    made = cell(name, setting)
    assert made.different == []
    assert made.unproved == {}


@architecture
@every_setting
def test_the_second_step_follows_the_first(name, setting):
    departed = 1 if ALL_ARCHITECTURES[name].differs else 0
    assert cell(name, setting).passes == (1, 1, departed)


@architecture
@every_setting
def test_a_ledger_counts_what_the_plan_says_in_a_recorded_pass_and_in_one_that_follows(name, setting):
    made = cell(name, setting)
    assert made.observed == (1, 1, 0)  # with the same random numbers and weights no architecture departs
    assert made.totals == [made.saved] * 2


@architecture
@every_setting
def test_bytes_are_predicted_or_refused(name, setting):
    made, known = cell(name, setting), ALL_ARCHITECTURES[name]
    if known.needs_values:
        assert isinstance(made.predicted, RecomputeError)
        assert "does not run without values" in str(made.predicted)
    else:
        assert made.predicted == made.saved + known.predicted_more.get(setting, 0)


@architecture
def test_each_setting_saves_no_more_than_the_one_before(name):
    selective, attention, full = (cell(name, setting).saved for setting in SETTINGS)
    assert bytes_without_recompute(name) > selective >= attention >= full


@architecture
def test_dropout_masks_are_drawn_again(name):
    assert (cell(name, "full").states > 0) == ALL_ARCHITECTURES[name].has_masks


@every_setting
def test_a_step_with_another_dropout_than_was_recorded_has_its_own_bits(setting):
    def losses_and_gradients(model):
        for p in (0.1, 0.3):
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = p
            torch.manual_seed(0)
            loss = loss_of(model(**batch_of("gpt2")))
            yield [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    plain, model = build("gpt2"), build("gpt2")
    plan = megaselect.recompute(model, setting)
    for expected, made in zip(losses_and_gradients(plain), losses_and_gradients(model), strict=True):
        assert all(map(torch.equal, expected, made))
    assert plan.departed == 1
