#!/usr/bin/env bash
# Reentrant checkpointing trains a mixture of experts without its balancing loss, and reports that loss all the same.
#
# transformers 5.23.0, torch 2.13.0.
#
# With output_router_logits=True a mixture of experts adds router_aux_loss_coef times a balancing loss to its loss, so
# that the router does not send everything to a few experts. The router's logits are taken out of the layers on the side,
# by the model's recorder of outputs, and are no results of the layers. A reentrant checkpoint runs a layer under no_grad
# and gives gradients to what the layer returns alone. So with {"use_reentrant": True} (what older scripts and configs set,
# once the default) the logits come without a gradient, and so does the balancing loss: it is added to the loss, it is
# in the log, and it trains nothing. The router collapses, or not, as it would with a coefficient of 0, whose gradients
# these are to the bit. No warning; loss and aux_loss are right. The attention weights of output_attentions=True have no
# gradient either, so a loss on them, as in distillation, is lost in the same way. Hidden states have one.
#
# What to do: {"use_reentrant": False}, the default; else compare the router's gradient with a step without checkpointing,
# or see that output.aux_loss.requires_grad is True.
#
# Seen, Mixtral of two layers, coefficient 0.02; router: its gradient's error against the first line:
#   checkpointing    loss      aux_loss  trains  router      attention weights have gradients
#   off              4.192147  2.001897  True    0.000       True
#   not reentrant    4.192147  2.001897  True    0.000       True
#   reentrant        4.192147  2.001897  False   0.719       False
#   the reentrant router's gradients are those of a coefficient of 0: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0

cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import MixtralConfig, MixtralForCausalLM

TOKENS = torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(1))


def step(reentrant=None, coefficient=0.02):
    """The outputs of a step, and the gradients of the routers' weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    config = MixtralConfig(
        num_hidden_layers=2,
        vocab_size=64,
        router_aux_loss_coef=coefficient,
        attn_implementation="eager",
        **sizes,
        **experts,
    )
    model = MixtralForCausalLM(config).train()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    output = model(input_ids=TOKENS, labels=TOKENS, use_cache=False, output_attentions=True)
    output.loss.backward()
    return output, [layer.mlp.gate.weight.grad for layer in model.model.layers]


def error(seen, right):
    return ((seen - right).norm() / right.norm()).item()


_, right = step()
_, unbalanced = step(coefficient=0.0)
print("checkpointing    loss      aux_loss  trains  router      attention weights have gradients")
seen = {}
for name, reentrant in {"off": None, "not reentrant": False, "reentrant": True}.items():
    output, routers = step(reentrant)
    trains, attends = output.aux_loss.requires_grad, output.attentions[0].requires_grad
    off_by = max(map(error, routers, right))
    seen[name] = (output.loss.item(), output.aux_loss.item(), trains, attends, off_by > 0.1)
    print(f"{name:<15}{output.loss:>10.6f}{output.aux_loss:>10.6f}  {trains!s:<8}{off_by:.3f}       {attends}")
without = all(map(torch.equal, routers, unbalanced))
print(f"the reentrant router's gradients are those of a coefficient of 0: {without}")
same_losses = len({values[:2] for values in seen.values()}) == 1
learned = [values[2:] for values in seen.values()]
as_described = same_losses and without and learned == [(True, True, False)] * 2 + [(False, False, True)]
sys.exit(0 if as_described else "changed: the balancing loss trains the router")
PYTHON
