"""The figures that matter most, in less than eight minutes of a GPU: bits, then kernels, then steps."""

from __future__ import annotations

import argparse

import torch

from benchmarks import attention_cases, bitwise, scores_cases
from benchmarks.rival_models import plain_sdpa_family
from benchmarks.runner import Bench, Case
from benchmarks.settings import BenchConfig, Setting, read_config
from benchmarks.step_cases import step_case

DROPOUTS = (0.0, 0.1)
CUDNN_DROPOUTS = (0.0, 0.1, 0.125)  # cuDNN resolves dropout to 1/16 in some kernels: 0.125 is fair to it
MAIN = (
    ("unfused", "none"), ("unfused", "selective"), ("unfused", "full"),
    ("fused", "none"), ("fused", "all"), ("fused", "full"), ("sdpa", "none"),
)  # fmt: skip
SHORT = (("fused", "none"), ("fused", "all"), ("sdpa", "none"))
BITS_FIRST = 3  # shapes whose bits come before all times; the others after them


def cases(_: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """In the order of importance."""
    bits = bitwise.cases(bench)
    return [*bits[:BITS_FIRST], *_kernels(bench), *_steps(bench, dtype), *bits[BITS_FIRST:], *_last(bench, dtype)]


def _kernels(bench: Bench) -> list[Case]:
    if not bench.on_gpu:
        rivals = attention_cases.rivals_of(bench)
        return [
            *scores_cases.cases(bench, (256,), DROPOUTS),
            *attention_cases.cases(bench, (128,), (64, 128), DROPOUTS, rivals),
        ]
    rivals = attention_cases.rivals_of(bench, all_of_them=False)
    return [
        *scores_cases.cases(bench, (4096, 2048), DROPOUTS),
        *attention_cases.cases(bench, (4096, 2048), (64, 128), CUDNN_DROPOUTS, rivals),
    ]


def _steps(bench: Bench, dtype: torch.dtype) -> list[Case]:
    """A large model takes no rival beside it: two with their optimizers would not leave room for activations."""
    if not bench.on_gpu:
        config = read_config("tiny").sized(micro_batch=4)
        return [_step(config, MAIN, dtype, bench, rival=True)]
    small, large = read_config("gpt2-124m"), read_config("gpt-1.3b")
    middle = [read_config(name) for name in ("gpt-350m", "gpt-760m")]
    return [
        _step(small, MAIN, dtype, bench, rival=True),
        _step(large, MAIN, dtype, bench),
        *(_step(config, SHORT, dtype, bench) for config in middle),
        _step(large, (), dtype, bench, rival=True),
    ]


def _last(bench: Bench, dtype: torch.dtype) -> list[Case]:
    """What compiles for a minute and more, where time is left."""
    if not bench.on_gpu:
        return []
    return [
        *bitwise.cases(bench, compiled=True),
        _step(read_config("gpt2-124m"), SHORT[1:2], dtype, bench, compiled=True),
    ]


def _step(
    config: BenchConfig,
    names: tuple[tuple[str, str], ...],
    dtype: torch.dtype,
    bench: Bench,
    rival: bool = False,
    compiled: bool = False,
) -> Case:
    settings = [Setting(*pair) for pair in names]
    if compiled:
        settings += [Setting(*pair, True) for pair in names]
    rivals = [("plain sdpa", lambda: plain_sdpa_family(config, bench.device, dtype))] if rival else []
    size = f"s={config.model.seq_length} b={config.training.micro_batch_size}"
    key = f"{config.name} {size}{' compiled' * compiled} [{len(settings)} settings{', plain' * rival}]"
    once = (120 if compiled else 25) if bench.on_gpu else 8
    return step_case(key, config, settings, dtype, bench.seconds + once, rivals)
