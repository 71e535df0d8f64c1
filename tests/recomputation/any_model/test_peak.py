"""What `full` takes at its highest moment, beside transformers' own checkpointing."""

import copy

import pytest
import torch

from megaselect import recompute
from megaselect.ledger.live_bytes import LiveBytes

transformers = pytest.importorskip("transformers")


def test_the_last_layer_does_not_run_again_while_the_logits_are_there():
    config = transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=4, n_positions=128, vocab_size=512, use_cache=False, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config).train()
    tokens = torch.randint(512, (1, 128))

    def peak(model):
        for _ in range(2):  # recorded, followed
            model.zero_grad(set_to_none=True)
            with LiveBytes() as live:
                model(input_ids=tokens, labels=tokens).loss.backward()
        return live.peak

    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    theirs.gradient_checkpointing_enable({"use_reentrant": False})
    recompute(ours, "full")
    assert peak(ours) < peak(theirs) < peak(model)
