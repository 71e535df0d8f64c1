"""`torchrun trainer_on_ranks.py FOLDER`: the Trainer under DDP, with the callback and without, on each rank."""

import json
import os
import sys
from pathlib import Path

import torch
from small_training import BATCH, SETTINGS, Samples, copies, gpt2
from transformers import Trainer, TrainingArguments

from megaselect.integrations.transformers import SAVED_BYTES, RecomputeCallback


def trained(folder, callback=None):
    """(tensors, bytes in the log)."""
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        max_steps=3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(gpt2(), arguments, train_dataset=Samples(), callbacks=[callback] if callback else [])
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = torch.tensor([entry["loss"] for entry in entries])
    return [losses, *copies(trainer.model.parameters())], [entry.get(SAVED_BYTES) for entry in entries]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    expected, _ = trained(folder)
    found = {}
    for setting in SETTINGS:
        callback = RecomputeCallback(setting)
        tensors, saved = trained(folder, callback)
        found[setting] = [all(map(torch.equal, expected, tensors)), saved, callback.plan.bytes]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
