#!/usr/bin/env bash
# torch.compile with activation_memory_budget = 0 draws new dropout masks in backward: gradients are off by 95 %.
#
# torch 2.13.0, torch.compile on a CPU.
#
# torch._functorch.config.activation_memory_budget is how torch.compile is told to save less for backward: 1 is its own
# choice, 0 what checkpointing the whole compiled region would save, and a knapsack decides in between. The partitioner
# keeps random operators from being run again, as it must: nothing restores the state of the random numbers. At 0, and
# there alone, it takes a short cut past that rule and keeps the inputs of the region only. Backward then draws masks
# of its own. Forward and loss are those without a budget, shapes agree, nothing warns; an element that dropout has kept
# gets a gradient of 0, and one that it has dropped gets one. Seen with the partitioner's own backend, which needs no
# C++ compiler; "inductor" does the same. A budget of 0.01 gives the right gradients.
#
# What to do: a small budget, never 0; or torch.utils.checkpoint inside the compiled region; and one step's gradients
# compared with those of a budget of 1.
#
# Seen, two blocks with dropout; loss equal to that of budget 1, and the largest relative error of a gradient:
#   budget 1.00   True   0.000
#   budget 0.50   True   0.000
#   budget 0.01   True   0.000
#   budget 0.00   True   0.955
#   budget 0, dropout(x * x).sin(): what is not 0 in the output, and in the gradient
#     0100010101000001
#     1100110101100001
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat >"$work/finding.py" <<'PYTHON'
import sys

import torch
import torch._functorch.config as functorch
from torch import nn
from torch.nn.functional import dropout, gelu

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x):
        return x + dropout(self.down(dropout(gelu(self.up(x)), 0.3)), 0.3)


def compiled(function, budget):
    torch.compiler.reset()
    functorch.activation_memory_budget = budget
    return torch.compile(function, backend="aot_eager_decomp_partition")


def step(budget):
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(), Block()), torch.randn(8, 32)
    torch.manual_seed(1)
    loss = compiled(model, budget)(x).square().mean()
    loss.backward()
    return loss, [weight.grad for weight in model.parameters()]


def error(seen, right):
    return ((seen - right).norm() / right.norm()).item()


loss_right, right = step(1.0)
errors, losses_equal = {}, True
for budget in (1.0, 0.5, 0.01, 0.0):
    loss, seen = step(budget)
    errors[budget] = max(map(error, seen, right))
    losses_equal &= torch.equal(loss, loss_right)
    print(f"budget {budget:.2f}   {torch.equal(loss, loss_right)}   {errors[budget]:.3f}")

x = torch.ones(16, requires_grad=True)
torch.manual_seed(0)
output = compiled(lambda x: dropout(x * x, 0.5).sin(), 0.0)(x)
output.sum().backward()
masks = [(values != 0).int().tolist() for values in (output, x.grad)]
print("budget 0, dropout(x * x).sin(): what is not 0 in the output, and in the gradient")
for mask in masks:
    print("  " + "".join(map(str, mask)))
wrong = [budget for budget, off_by in errors.items() if off_by > 1e-4]
as_described = losses_equal and wrong == [0.0] and masks[0] != masks[1]
sys.exit(0 if as_described else "changed: other budgets give wrong gradients, or none does")
PYTHON
"$work/env/bin/python" "$work/finding.py"
