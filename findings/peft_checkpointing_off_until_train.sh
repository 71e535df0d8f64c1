#!/usr/bin/env bash
# Gradient checkpointing of a model wrapped by peft is off, while every flag that one would look at says it is on.
#
# peft 0.21.2, transformers 5.23.0, torch 2.13.0.
#
# from_pretrained returns a model in evaluation mode. get_peft_model puts wrappers around it, and these are new modules,
# in training mode: model.training is True. The layers inside are still in evaluation mode, and transformers recomputes
# a layer only where layer.training is set; elsewhere gradient_checkpointing_enable() has no effect and no word is said.
# Gradients are computed all the same, so a loop that looks at model.training before it calls train(), or trusts it,
# keeps every activation; the model's own dropout is off, too, while the adapters' is on. The same happens to whoever
# sets the frozen model to eval() to be rid of its dropout: with dropout goes recomputation.
#
# What to do: call train() always, whatever model.training says; set dropout to 0 in the config in place of eval(), and
# count the runs of a layer in one step.
#
# Seen, two layers:
#   loaded and wrapped:  model.training True, is_gradient_checkpointing True, layer.training False
#     runs of layers in a step: 2 (none again)
#   after model.train(): model.training True, is_gradient_checkpointing True, layer.training True
#     runs of layers in a step: 4 (each once again)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2

cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=100, **sizes)).save_pretrained("model")
base = LlamaForCausalLM.from_pretrained("model")
model = get_peft_model(base, LoraConfig(target_modules="all-linear"))
model.gradient_checkpointing_enable()

layers = base.model.layers
runs = 0


def count(*_):
    global runs
    runs += 1


for layer in layers:
    layer.mlp.register_forward_pre_hook(count)


def look(title):
    global runs
    runs = 0
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    flags = (model.training, model.is_gradient_checkpointing, layers[0].training)
    names = ("model.training", "is_gradient_checkpointing", "layer.training")
    print(f"{title:<20} " + ", ".join(f"{name} {flag}" for name, flag in zip(names, flags, strict=True)))
    print(f"  runs of layers in a step: {runs}")
    return *flags, runs


wrapped = look("loaded and wrapped:")
model.train()
trained = look("after model.train():")
as_described = wrapped == (True, True, False, 2) and trained == (True, True, True, 4)
sys.exit(0 if as_described else "changed: checkpointing is on or off in other places")
PYTHON
