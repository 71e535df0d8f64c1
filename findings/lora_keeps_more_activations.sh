#!/usr/bin/env bash
# LoRA over a bf16 model keeps half as many bytes again for backward as training all of its weights does.
#
# peft 0.21.2, transformers 5.23.0, torch 2.13.0.
#
# One expects LoRA to need less activation memory: frozen weights ask for no gradient, so their inputs need not be
# kept. The inputs are kept all the same, for the adapters, and in fp32: get_peft_model makes the adapters of a bf16
# model fp32 (autocast_adapter_dtype=True) and casts each target's input to that, a copy of its own for each target, so
# q, k and v keep three fp32 copies of the one tensor that plain training keeps once in bf16. With lora_dropout each
# target has its own mask and its own dropped copy besides. A plan made from the bf16 bytes of full training, or the
# choice of which layers to recompute, is then wrong by a factor. (On a CPU a dropout mask has the dtype of its input;
# on a GPU it is one byte an element, and the last two lines are lower there.)
#
# What to do: autocast_adapter_dtype=False where bf16 adapters will do; target fewer modules; leave lora_dropout at 0;
# and measure bytes with the adapters in place.
#
# Seen, bytes kept for backward by one Llama layer (hidden size 256, 2 x 256 tokens), weights not counted:
#   all weights trained                      5,976,064   1.00
#   LoRA                                     8,892,416   1.49
#   LoRA, adapters in bf16                   5,509,120   0.92
#   LoRA, dropout 0.05                      13,447,168   2.25
#   LoRA, dropout 0.05, adapters in bf16     8,835,072   1.48
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2

"$work/env/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")

import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM


def llama(layers):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=100, **sizes)).to(torch.bfloat16).train()


def lora(layers, dropout, autocast):
    config = LoraConfig(r=8, target_modules="all-linear", lora_dropout=dropout)
    return get_peft_model(llama(layers), config, autocast_adapter_dtype=autocast)


def kept_bytes(model):
    """Bytes of all storages that autograd keeps, each once; those of parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(2, 256, dtype=torch.int64)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    del loss
    return sum(storage.nbytes() for storage in storages.values())


def a_layer(build):
    return kept_bytes(build(3)) - kept_bytes(build(2))


rows = {
    "all weights trained": llama,
    "LoRA": lambda n: lora(n, 0.0, True),
    "LoRA, adapters in bf16": lambda n: lora(n, 0.0, False),
    "LoRA, dropout 0.05": lambda n: lora(n, 0.05, True),
    "LoRA, dropout 0.05, adapters in bf16": lambda n: lora(n, 0.05, False),
}
kept = {name: a_layer(build) for name, build in rows.items()}
full = kept["all weights trained"]
for name, size in kept.items():
    print(f"{name:<38}{size:>12,}{size / full:>7.2f}")
as_described = kept["LoRA"] > 1.3 * full > kept["LoRA, adapters in bf16"] and kept["LoRA, dropout 0.05"] > 2 * full
sys.exit(0 if as_described else "changed: LoRA keeps other amounts for backward")
PYTHON
