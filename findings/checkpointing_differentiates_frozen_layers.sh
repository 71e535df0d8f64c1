#!/usr/bin/env bash
# Checkpointing a model whose lower layers are frozen makes it run backward through all of them, for nothing.
#
# transformers 5.23.0, torch 2.13.0.
#
# Where only the upper layers train, autograd stops below them: frozen layers keep nothing for backward, and have no
# backward pass. activation_checkpointing_enable() (the Trainer's activation_checkpointing=True, and
# gradient_checkpointing as it was called) makes the output of the embedding ask for a gradient, which reentrant
# checkpoints needed; it does so for the default ones too, which do not, and whatever is frozen. From there on every
# frozen layer keeps its input, runs a second time, and is differentiated, down to the embedding, where the gradient is
# thrown away. Trained weights get the same gradients. So a switch that is to cost a third of a step's time costs more
# than the step; and where few layers train, a checkpointed model keeps more bytes than one without checkpointing.
#
# What to do: model.disable_input_require_grads() after switching it on, with the Trainer in a callback's
# on_train_begin; or switch off the layers that are frozen, layer.gradient_checkpointing = False, which keeps their
# inputs from being saved as well. Reentrant checkpoints do need the gradient.
#
# Seen, Llama of 32 layers, of which the upper ones train; bytes kept for backward without weights, and FLOPs of a step:
#   layers that train                              1                      4
#   no checkpointing               1,449,988   1.00 x      5,548,036   1.00 x
#   checkpointing                  2,231,300   2.64 x      2,231,300   2.32 x
#   and no gradient of embeddings  2,231,300   1.02 x      2,231,300   1.08 x
#   trained layers checkpointed      199,684   1.02 x        396,292   1.08 x
#   gradients are equal: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0

cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.set_num_threads(1)
LAYERS = 32
TOKENS = torch.randint(0, 64, (2, 128), generator=torch.Generator().manual_seed(1))


def switched_off(model):
    pass


def switched_on(model):
    model.activation_checkpointing_enable()


def without_input_gradient(model):
    model.activation_checkpointing_enable()
    model.disable_input_require_grads()


def of_trained_layers(model):
    without_input_gradient(model)
    for layer in model.model.layers:
        layer.gradient_checkpointing = any(weight.requires_grad for weight in layer.parameters())


def step(switch, trained):
    """Bytes kept for backward, FLOPs and gradients of a step; weights are not counted."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, vocab_size=64, **sizes)).train()
    model.requires_grad_(False)
    model.model.layers[LAYERS - trained :].requires_grad_(True)
    switch(model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with FlopCounterMode(display=False) as flops:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        kept = sum(storage.nbytes() for storage in storages.values())
        loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    return kept, flops.get_total_flops(), gradients


ROWS = {
    "no checkpointing": switched_off,
    "checkpointing": switched_on,
    "and no gradient of embeddings": without_input_gradient,
    "trained layers checkpointed": of_trained_layers,
}
TRAINED = (1, 4)
plain = {trained: step(switched_off, trained) for trained in TRAINED}
print((f"{'layers that train':<30}" + "".join(f"{trained:>18}     " for trained in TRAINED)).rstrip())
seen, equal = {}, True
for name, switch in ROWS.items():
    line = f"{name:<30}"
    for trained in TRAINED:
        kept, flops, gradients = step(switch, trained)
        _, flops_plain, right = plain[trained]
        equal &= all(map(torch.equal, gradients, right))
        seen[name, trained] = kept, flops / flops_plain
        line += f"{kept:>10,}{flops / flops_plain:>7.2f} x     "
    print(line.rstrip())
print(f"gradients are equal: {equal}")
kept_more = seen["checkpointing", 1][0] > seen["no checkpointing", 1][0]
costs = all(seen["checkpointing", trained][1] > 2 for trained in TRAINED)
avoided = all(seen["and no gradient of embeddings", trained][1] < 1.2 for trained in TRAINED)
if not (equal and kept_more and costs and avoided):
    sys.exit("changed: frozen layers are not differentiated, or at another cost")
PYTHON
