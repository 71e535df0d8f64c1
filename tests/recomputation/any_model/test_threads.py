"""Two threads train a model each, at the same time."""

import threading

import pytest
import torch
from steps_compared import SETTINGS, Language, cross_entropy, tokens

from megaselect import recompute


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_models(setting):
    models = [Language().eval() for _ in range(2)]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        for part in model.parameters():
            torch.nn.init.normal_(part, std=0.1)
    copies = [Language().eval() for _ in models]
    for model, copied in zip(models, copies, strict=True):
        copied.load_state_dict(model.state_dict())
        recompute(copied, setting)
    barrier = threading.Barrier(2)

    def train(number, model):
        barrier.wait()
        for step in range(4):
            cross_entropy(model, tokens(step + 10 * number)).backward()

    threads = [threading.Thread(target=train, args=pair) for pair in enumerate(copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (model, copied) in enumerate(zip(models, copies, strict=True)):
        for step in range(4):
            cross_entropy(model, tokens(step + 10 * number)).backward()
        for one, other in zip(model.parameters(), copied.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
