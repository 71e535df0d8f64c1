#!/usr/bin/env bash
# LayerNorm on a CPU adds up its bias gradient in bf16: 4,096 ones make 256.
#
# torch 2.13.0, CPU.
#
# With bf16 activations the backward pass of layer_norm on a CPU adds the tokens' contributions to the gradients of
# weight and bias in a bf16 buffer, one for each thread. bf16 has 8 bits of precision, so a running sum that has reached
# 256 does not change when 1 is added. This holds for fp32 weights, too (the usual mixed precision): the buffer has the
# activations' dtype, and the gradient arrives in fp32, 32 bits of a wrong number. The error grows with the number of
# tokens of a batch, and depends on the number of threads: the same step gives other gradients on another machine. The
# bias of a linear layer, over the same tokens and in bf16, is right, as is rms_norm's weight. Whoever takes a CPU run
# for the reference of a GPU kernel, or checks one micro-batch against several, finds the fault in the wrong place.
#
# What to do: hand layer_norm fp32 activations on a CPU, or compare gradients of normalization in fp32 runs only.
#
# Seen, one thread; each token's gradient is 1, so the bias's gradient is the number of tokens:
#   tokens    layer_norm, fp32 weights    layer_norm, bf16 weights    linear bias, bf16
#   256                            256                         256                  256
#   1024                           256                         256                 1024
#   4096                           256                         256                 4096
#   normally distributed gradients of 4096 tokens: weight off by 8.5%, bias off by 7.6%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$work/env/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import layer_norm, linear

torch.set_num_threads(1)
torch.manual_seed(0)
WIDTH = 64


def norm_gradients(x, upstream, dtype):
    weight = torch.ones(WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.zeros(WIDTH, dtype=dtype, requires_grad=True)
    layer_norm(x, (WIDTH,), weight, bias).backward(upstream)
    return weight.grad.double(), bias.grad.double()


def linear_bias_gradient(x, upstream):
    bias = torch.zeros(WIDTH, dtype=torch.bfloat16, requires_grad=True)
    linear(x, torch.eye(WIDTH, dtype=torch.bfloat16), bias).backward(upstream)
    return bias.grad.double()


def error(seen, right):
    return ((seen - right).norm() / right.norm()).item()


print("tokens    layer_norm, fp32 weights    layer_norm, bf16 weights    linear bias, bf16")
sums = {}
for tokens in (256, 1024, 4096):
    x, upstream = torch.randn(tokens, WIDTH).bfloat16(), torch.ones(tokens, WIDTH).bfloat16()
    mixed = norm_gradients(x, upstream, torch.float32)[1][0].item()
    low = norm_gradients(x, upstream, torch.bfloat16)[1][0].item()
    plain = linear_bias_gradient(x, upstream)[0].item()
    sums[tokens] = (mixed, low, plain)
    print(f"{tokens:<10}{mixed:>24g}{low:>28g}{plain:>21g}")

upstream = torch.randn(4096, WIDTH).bfloat16()
weight, bias = norm_gradients(x, upstream, torch.float32)
weight_right, bias_right = norm_gradients(x.double(), upstream.double(), torch.float64)
errors = error(weight, weight_right), error(bias, bias_right)
print(f"normally distributed gradients of 4096 tokens: weight off by {errors[0]:.1%}, bias off by {errors[1]:.1%}")
as_described = sums[256] == (256, 256, 256) and sums[4096] == (256, 256, 4096) and min(errors) > 0.02
sys.exit(0 if as_described else "changed: the sums are other ones")
PYTHON
