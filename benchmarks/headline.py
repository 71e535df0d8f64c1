"""The figures that matter most, in less than eight minutes of a GPU: bits, then kernels, then steps."""

from __future__ import annotations

import argparse

import torch

from benchmarks import attention_cases, bitwise, scores_cases
from benchmarks.baseline_models import plain_sdpa_family
from benchmarks.configs import NamedConfig, read_config
from benchmarks.runner import Bench, Case
from benchmarks.settings import BenchmarkSetting
from benchmarks.step_cases import step_case

DROPOUTS = (0.0, 0.1)
CUDNN_DROPOUTS = (0.0, 0.1, 0.125)  # cuDNN resolves dropout to 1/16 in some kernels: 0.125 is fair to it
MAIN = (
    ("unfused", "none"), ("unfused", "selective"), ("unfused", "full"),
    ("fused", "none"), ("fused", "all"), ("fused", "full"), ("sdpa", "none"),
)  # fmt: skip
SHORT = (("fused", "none"), ("fused", "all"), ("sdpa", "none"))
MFU_TOKENS = 16384  # a micro-batch, which is a whole step here; training has at least 32 a step
BITS_FIRST = 3  # shapes whose bits come before all times; the others after them


def cases(_: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """In the order of importance."""
    bits = bitwise.cases(bench)
    return [*bits[:BITS_FIRST], *_kernels(bench), *_steps(bench, dtype), *bits[BITS_FIRST:], *_last(bench, dtype)]


def _kernels(bench: Bench) -> list[Case]:
    if not bench.on_gpu:
        baselines = attention_cases.baselines_of(bench)
        return [
            *scores_cases.cases(bench, (256,), DROPOUTS),
            *attention_cases.cases(bench, (128,), (64, 128), DROPOUTS, baselines),
        ]
    baselines = attention_cases.baselines_of(bench, all_of_them=False)
    return [
        *scores_cases.cases(bench, (4096, 2048), DROPOUTS),
        *attention_cases.cases(bench, (4096, 2048), (64, 128), CUDNN_DROPOUTS, baselines),
    ]


def _steps(bench: Bench, dtype: torch.dtype) -> list[Case]:
    """At the configs' own sizes, then with more tokens, of which MFU is judged: there the optimizer's share is small.

    A large model takes the baseline beside few settings: with two optimizers there is no room for unfused activations.
    """
    if not bench.on_gpu:
        tiny = read_config("tiny").sized(micro_batch=4)
        return [_step(tiny, MAIN, dtype, bench, baseline=True)]
    small, large, medium, wide = (read_config(name) for name in ("gpt2-124m", "gpt-1.3b", "gpt-350m", "gpt-760m"))
    return [
        _step(small, MAIN, dtype, bench, baseline=True),
        _step(large, MAIN, dtype, bench),
        *(_step(_with_tokens(named), SHORT, dtype, bench) for named in (large, medium, wide)),
        _step(large, SHORT, dtype, bench, baseline=True),
    ]


def _with_tokens(named: NamedConfig) -> NamedConfig:
    return named.sized(micro_batch=max(MFU_TOKENS // named.config.model.seq_length, 1))


def _last(bench: Bench, dtype: torch.dtype) -> list[Case]:
    """What compiles for a minute and more, where time is left."""
    if not bench.on_gpu:
        return []
    return [
        *bitwise.cases(bench, compiled=True),
        _step(read_config("gpt2-124m"), SHORT, dtype, bench, compiled=True),
    ]


def _step(
    named: NamedConfig,
    names: tuple[tuple[str, str], ...],
    dtype: torch.dtype,
    bench: Bench,
    baseline: bool = False,
    compiled: bool = False,
) -> Case:
    config = named.config
    settings = [BenchmarkSetting(*pair) for pair in names]
    if compiled:
        settings += [BenchmarkSetting(*pair, True) for pair in names]
    baselines = [("plain sdpa", lambda: plain_sdpa_family(config, bench.device, dtype))] if baseline else []
    size = f"s={config.model.seq_length} b={config.training.micro_batch_size}"
    key = f"{named.name} {size}{' compiled' * compiled} [{len(settings)} settings{', plain' * baseline}]"
    once = (70 if compiled else 25) if bench.on_gpu else 8
    return step_case(key, named, settings, dtype, bench.seconds + once, baselines)
