"""Hugging Face's Trainer trains a model with a plan, beside its own checkpointing too."""

import importlib.util

import pytest
import torch
from steps_compared import SETTINGS, differing, tokens

from megaselect import recompute

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="transformers' Trainer needs accelerate"
)


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, number):
        sample = tokens(number, 1)[0]
        return {"input_ids": sample, "labels": sample}


def trained(folder, setting, **options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=4, n_positions=32, vocab_size=40, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    plan = None if setting is None else recompute(model, setting)
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        eval_strategy="steps",
        eval_steps=2,
        **options,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Samples(), eval_dataset=Samples())
    trainer.train()
    losses = [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_loss") if name in entry]
    return [torch.tensor(losses), *(part.detach().clone() for part in model.parameters())], plan


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=["plain", "checkpointing", "bf16"]
)
def test_trainer(tmp_path, options, setting):
    expected, _ = trained(tmp_path, None, **options)
    found, plan = trained(tmp_path, setting, **options)
    assert differing(expected, found) == []
    assert (plan.recorded, plan.followed, plan.departed) == (1, 7, 0)
