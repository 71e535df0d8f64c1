"""torch's own checkpointing of some layers, beside or inside a plan."""

import pytest
from steps_compared import SETTINGS, Language, Layer, assert_same, plain_step
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class SomeCheckpointed(Language):
    def __init__(self, use_reentrant):
        super().__init__(layers=3)
        self.use_reentrant = use_reentrant

    def forward(self, tokens):
        x = functional.dropout(self.embedding(tokens), 0.1, self.training)
        for number, layer in enumerate(self.layers):
            x = checkpoint(layer, x, use_reentrant=self.use_reentrant) if number == 1 else layer(x)
        return self.head(self.norm(x))


def all_wrapped():
    model = Language()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Layer))
    return model


def wrapped_later(model):
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Layer))
    return model


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_some_layers(use_reentrant, setting):
    plan = assert_same(lambda: SomeCheckpointed(use_reentrant), plain_step, setting)
    assert (plan.recorded, plan.followed, plan.departed) == (1, 3, 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_layers(setting):
    assert_same(all_wrapped, plain_step, setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_wrapped_after_the_plan_was_made(setting):
    assert_same(Language, plain_step, setting, wrap=wrapped_later)
