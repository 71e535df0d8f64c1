"""Compiles the Triton kernels for real GPUs on a machine that needs none, and prints what came out.

    python tests/kernels/compile_report.py [--all] [--markdown | --summary]

Calls the launch functions with tensors that have no memory, while a stand-in for the driver names the target: so every
kernel is compiled as a launch would compile it, argument specialisation included. A JSON line has the registers, stack
and shared memory of a program, what was converted between layouts, counts of telling instructions, and for each ex2 in
the PTX the instructions that its argument comes from; --markdown makes a table of the resources instead. Must run
without TRITON_INTERPRET.
"""

import argparse
import collections
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from compile_tables import print_markdown, print_summary
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from megaselect.kernels import (
    attention_triton,
    bias_dropout_residual_layer_norm_triton,
    bias_dropout_residual_triton,
    dropout_mask_triton,
    layer_norm_triton,
    softmax_dropout_triton,
)
from megaselect.kernels.dropout_mask import Plane

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TELLING = {  # what the report counts: SASS opcodes by pattern
    "wide multiply": r"IMAD\.(WIDE|HI)",
    "fused multiply-add": r"FFMA",
    "exponential": r"MUFU\.EX2",
    "matrix": r"HMMA",
    "warpgroup matrix": r"HGMMA",
    "16-byte load": r"LDG.*\.128",
    "narrower load": r"LDG(?!.*\.128)",
    "16-byte store": r"STG.*\.128",
    "narrower store": r"STG(?!.*\.128)",
    "shuffle": r"SHFL",
    "barrier": r"BAR",
    "spill": r"LDL|STL",
}
# The products of Philox's rounds: its two constants as nvdisasm prints them. Other wide multiplies make addresses.
PHILOX = re.compile(r"IMAD\.(?:WIDE|HI)\S* .*(?:-0x2daee0ad|0xd2511f53|-0x326172a9|0xcd9e8d57)")
FORMS = {  # storage form: (save_probs, save_mask)
    "none": (True, True),
    "dropout": (True, False),
    "softmax": (False, True),
    "softmax+dropout": (False, False),
}
PLANE = Plane(seed=5, site=7, threshold=26)


class Driver:
    """As much of a GPU driver as compiling needs."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, _):
        return 0


def softmax_dropout(dtype, width, form, direction):
    scores = torch.empty(1, 2, width, width, dtype=dtype, device="meta")
    samples = torch.empty(1, dtype=torch.int64, device="meta")
    save_probs, save_mask = FORMS[form]
    if direction == "forward":
        softmax_dropout_triton.forward(scores, samples, PLANE, save_probs, save_mask)
        return
    empty, statistics = scores.new_empty(0), scores.new_empty(scores.shape[:-1], dtype=torch.float32)
    softmax_dropout_triton.backward(
        torch.empty_like(scores),
        statistics,
        samples,
        PLANE,
        scores=empty if save_probs else scores,
        row_max=empty if save_probs else statistics,
        inverse_sum=empty if save_probs else statistics,
        probs=scores if save_probs else empty,
        mask=(scores if save_mask else empty).to(torch.int8),
        write_dropped=form != "none",
    )


def bias_dropout_residual(dtype, width, form, direction):
    x = torch.empty(64, 2, width, dtype=dtype, device="meta")
    samples = torch.empty(2, dtype=torch.int64, device="meta")
    save_mask = form == "none"
    if direction == "forward":
        bias_dropout_residual_triton.forward(x, x[0, 0], x, samples, PLANE, save_mask)
    else:
        mask = x.new_empty(x.shape if save_mask else (0,), dtype=torch.int8)
        bias_dropout_residual_triton.backward(x, samples, PLANE, mask)


def layer_norm(dtype, width, _, direction):
    x = torch.empty(64, 2, width, dtype=dtype, device="meta")
    if direction == "forward":
        layer_norm_triton.forward(x, x[0, 0], x[0, 0], 1e-5)
    else:
        statistics = x.new_empty(64, 2, 1, dtype=torch.float32)
        layer_norm_triton.backward(x, x, x[0, 0], x[0, 0], statistics, statistics)


def bias_dropout_residual_layer_norm(dtype, width, form, direction):
    x = torch.empty(64, 2, width, dtype=dtype, device="meta")
    samples, kernels = torch.empty(2, dtype=torch.int64, device="meta"), bias_dropout_residual_layer_norm_triton.Fused
    vector, save_mask = x[0, 0], form == "none"
    if direction == "forward":
        kernels.forward(x, vector, x, vector, vector, samples, PLANE, 1e-5, save_mask)
    else:
        mask = x.new_empty(x.shape if save_mask else (0,), dtype=torch.int8)
        statistics = x.new_empty(64, 2, 1, dtype=torch.float32)
        kernels.backward(x, x, x, statistics, statistics, mask, samples, vector, vector, PLANE)


def fused_attention(dtype, head_size, form, direction):
    groups, queries = (2, 3) if form == "grouped heads" else (4, 1)
    plane = PLANE._replace(threshold=0) if form == "no dropout" else PLANE
    qkv = torch.empty(1024, 2, groups, queries + 2, head_size, dtype=dtype, device="meta")
    split = qkv[:, :, :, :-2], qkv[:, :, :, -2], qkv[:, :, :, -1]
    samples = torch.empty(2, dtype=torch.int64, device="meta")
    context = torch.empty(1024, 2, groups * queries * head_size, dtype=dtype, device="meta")
    if direction == "forward":
        attention_triton.forward(*split, samples, plane, 0.125)
    else:
        statistic = torch.empty(2, groups * queries, 1024, device="meta")
        attention_triton.backward(context, *split, context, statistic, samples, plane, 0.125, *split)


def drop_bits(*_):
    samples = torch.empty(1, dtype=torch.int64, device="meta")
    dropout_mask_triton.drop_bits(samples, PLANE, planes=16, rows=1024, columns=1024)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
K1, K2, HIDDEN = softmax_dropout, fused_attention, bias_dropout_residual
NORM, HIDDEN_NORM = layer_norm, bias_dropout_residual_layer_norm
REPRESENTATIVE = [
    *((90, K1, BF16, 1024, form, "forward") for form in ("none", "softmax+dropout")),
    *((90, K1, BF16, 1024, form, "backward") for form in FORMS),
    *((90, K1, BF16, 16384, "softmax+dropout", direction) for direction in ("forward", "backward")),
    *((90, K1, FP32, 1024, "softmax+dropout", direction) for direction in ("forward", "backward")),
    *((80, K1, FP16, 4096, "softmax+dropout", direction) for direction in ("forward", "backward")),
    (90, K1, BF16, 1001, "softmax+dropout", "backward"),
    *((90, HIDDEN, BF16, 1024, form, "forward") for form in ("none", "softmax+dropout")),
    (90, HIDDEN, BF16, 1024, "softmax+dropout", "backward"),
    *((90, NORM, BF16, 4096, "none", direction) for direction in ("forward", "backward")),
    *((80, NORM, BF16, 4096, "none", direction) for direction in ("forward", "backward")),
    *((90, HIDDEN_NORM, BF16, 4096, form, "forward") for form in ("none", "softmax+dropout")),
    *((90, HIDDEN_NORM, BF16, 4096, form, "backward") for form in ("none", "softmax+dropout")),
    *((80, HIDDEN_NORM, BF16, 4096, "softmax+dropout", direction) for direction in ("forward", "backward")),
    *((90, HIDDEN_NORM, BF16, 12288, "softmax+dropout", direction) for direction in ("forward", "backward")),
    *((90, K2, BF16, head_size, form, "forward") for head_size in (64, 128) for form in ("dropout", "no dropout")),
    *((90, K2, BF16, head_size, "dropout", "backward") for head_size in (64, 80, 128)),
    *((80, K2, FP16, 64, "dropout", direction) for direction in ("forward", "backward")),
    (80, K2, FP16, 128, "grouped heads", "backward"),
    *((90, K2, FP32, 64, "dropout", direction) for direction in ("forward", "backward")),
    (90, drop_bits, None, 1024, "softmax+dropout", "forward"),
]
EVERYTHING = [
    (capability, kernel, dtype, width, form, direction)
    for capability in (90, 80)
    for kernel in (K1, HIDDEN, NORM, HIDDEN_NORM)
    for dtype in (BF16, FP16, FP32)
    for width in (100, 1001, 1024, 2048, 4096, 16384)
    for form in {K1: FORMS, NORM: ("none",)}.get(kernel, ("none", "softmax+dropout"))
    for direction in ("forward", "backward")
] + [
    (capability, K2, dtype, head_size, form, direction)
    for capability in (90, 80)
    for dtype in (BF16, FP16, FP32)
    for head_size in (16, 32, 64, 80, 96, 120, 128)
    for form in ("dropout", "no dropout", "grouped heads")
    for direction in ("forward", "backward")
]


def compile_all(cases):
    """Yields (case, CompiledKernel) for each kernel that a case's launch would have run."""
    built = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        del warmup
        built.append(run(self, *arguments, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    for case in cases:
        capability, launch, *arguments = case
        driver.set_active(Driver(capability))
        built.clear()
        launch(*arguments)
        for kernel in built:
            yield case, kernel


def machine_code(kernel):
    """(resource usage, disassembly) as the CUDA tools inside the Triton package print them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin.name], capture_output=True, text=True)
        # Without its analysis of branches, a quarter of its time: the text is the same.
        disassemble = [TOOLS / "nvdisasm", "-c", "-ndf", cubin.name]
        sass = subprocess.run(disassemble, capture_output=True, text=True)
    return usage.stdout + usage.stderr, sass.stdout


def origins(ptx, depth=2):
    """For each ex2 in the PTX its argument's origin, nearest instruction first, e.g. "mul.f32 sub.f32"."""
    assigned = {}
    found = collections.Counter()
    for operation, target, arguments in re.findall(r"^\s*([\w.]+)\s+(%\w+), (.*);", ptx, re.M):
        assigned[target] = (operation, re.findall(r"%\w+", arguments))
        if operation.startswith("ex2"):
            chain, sources = [], assigned[target][1]
            while sources and len(chain) < depth:
                operation_before, sources = assigned[sources[0]]
                chain.append(operation_before)
            found[" ".join(chain)] += 1
    return dict(found)


def reductions(ttgir):
    """The tensor types that are reduced, in order: with the program's text they fix the order of every sum."""
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.M))
    operands = re.findall(r"\}\) : \((tensor<.*?>)\) -> ", ttgir)
    return [re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), operand) for operand in operands]


def report(case, kernel):
    capability, launch, dtype, width, form, direction = case
    usage, sass = machine_code(kernel)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    opcodes = re.findall(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]+)[\s;]", sass, re.M)
    conversions = re.findall(r"ttg\.convert_layout [^:]*: tensor<(\S+?), ", kernel.asm["ttgir"])
    return {
        "kernel": launch.__name__,
        "program": kernel.metadata.name,
        "direction": direction,
        "form": form,
        "dtype": str(dtype),
        "width": width,
        "capability": capability,
        "registers": int(registers),
        "stack_bytes": int(stack),
        "shared_bytes": kernel.metadata.shared,
        "conversions": conversions,
        "reductions": reductions(kernel.asm["ttgir"]),
        "instructions": len(opcodes),
        "counts": {
            name: sum(re.match(pattern, code) is not None for code in opcodes) for name, pattern in TELLING.items()
        },
        "philox_multiplies": len(PHILOX.findall(sass)),
        # sm_80 adds in bf16 as a multiply-add with 1: nothing is contracted there
        "ptx_fma": len(re.findall(r"^\s*fma\.(?!rn\.bf16)", kernel.asm["ptx"], re.M)),
        "ex2_arguments": origins(kernel.asm["ptx"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every kernel, dtype, width, storage form and target")
    parser.add_argument("--markdown", action="store_true", help="a table of registers, stack and shared memory")
    parser.add_argument("--summary", action="store_true", help="the same, a line for each program")
    parser.add_argument("--half", type=int, choices=(0, 1), help="every other case: two processes share the work")
    arguments = parser.parse_args()
    cases = EVERYTHING if arguments.all else REPRESENTATIVE
    cases = cases if arguments.half is None else cases[arguments.half :: 2]
    reports = (report(case, kernel) for case, kernel in compile_all(cases))
    if arguments.summary:
        print_summary(list(reports))
    elif arguments.markdown:
        print_markdown(list(reports))
    else:
        for found in reports:
            print(json.dumps(found), flush=True)
