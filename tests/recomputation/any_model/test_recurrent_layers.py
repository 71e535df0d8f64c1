"""Fused recurrent kernels give no workspace where gradients are off, as they are in backward: they run once."""

import pytest
from steps_compared import SETTINGS, assert_same, squares
from torch import nn


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind, setting):
    assert_same(lambda: kind(32, 16, 2, dropout=0.3, batch_first=True), squares(2, 8, 32), setting)
