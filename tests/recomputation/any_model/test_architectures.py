"""megaselect.recompute on architectures of Hugging Face: same bits, known bytes, and later passes follow the first."""

import pytest
import torch
from architecture_steps import SETTINGS, bytes_without_recompute, cell
from architectures import ALL_ARCHITECTURES, batch_of, build, loss_of

from megaselect.errors import RecomputeError

FEW = ("gpt2", "llama", "gemma3_text", "mixtral, eager", "bert", "t5", "vit")  # a shape each; all of them in the soak
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
def test_the_models_draw_random_numbers_where_their_architecture_has_dropout(name):
    model = build(name)
    losses = set()
    for seed in range(3):
        torch.manual_seed(seed)
        losses.add(loss_of(model(**batch_of(name))).item())
    assert (len(losses) > 1) == ALL_ARCHITECTURES[name].has_dropout
