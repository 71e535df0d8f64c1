"""Which cases each part has, most important first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks import attention_cases, hidden_cases, scores_cases
from benchmarks.baseline_models import baseline_makers
from benchmarks.configs import NamedConfig, read_config
from benchmarks.largest_batch import largest_case
from benchmarks.runner import Bench, Case
from benchmarks.settings import ATTENTIONS, BASELINES, KERNELS, RECOMPUTE, BenchmarkSetting
from benchmarks.step_cases import step_case

GPU_CONFIGS, CPU_CONFIGS = ("gpt2-124m", "gpt-1.3b", "gpt-350m", "gpt-760m"), ("tiny",)
GPU_SEQUENCES = (1024, 2048, 4096, 8192)
OWN = " own "  # in the key of a case at the sequence length that the config names
BESIDE_A_BASELINE = {"gpt-1.3b": 1}  # micro-batches on a GPU: two such models and their optimizers are 47 GB
SWEPT = (("unfused", "none"), ("unfused", "selective"), ("fused", "none"), ("fused", "all"), ("fused", "full"))
BESIDE_BASELINES = (
    ("unfused", "none"), ("unfused", "selective"), ("unfused", "full"),
    ("fused", "none"), ("fused", "all"), ("fused", "full"), ("sdpa", "none"),
)  # fmt: skip
SAME_WITHOUT_SCORES = ("dropout", "core_attn")  # what selective is where there are no scores: left out unless asked for


def kernels(arguments: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """K1 and K2 at every length, and the ops of the residual stream."""
    gpu = bench.on_gpu
    k1_lengths = arguments.seq or ((4096, 2048, 8192, 1024, 16384) if gpu else (128, 256))
    k2_lengths = arguments.seq or ((4096, 2048, 8192, 1024, 16384) if gpu else (128,))
    head_sizes, dropouts = arguments.head_size or (64, 128), arguments.dropout or (0.0, 0.1, 0.125)
    wanted = arguments.kernel or KERNELS
    made: list[Case] = []
    if "k1" in wanted:
        made += scores_cases.cases(bench, k1_lengths, dropouts)
    made += hidden_cases.cases(bench, wanted, dropouts[:2])
    if "k2" in wanted:
        made += attention_cases.cases(bench, k2_lengths, head_sizes, dropouts, attention_cases.baselines_of(bench))
    return made


def step(arguments: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """A config's own length first, eager before compiled; last, on a GPU, the largest micro-batch of each setting.

    Eager settings of all attentions take turns in one case; compiled ones, which compile for minutes, have a case for
    each attention, beside its eager `none`.
    """
    made: list[Case] = []
    largest: list[Case] = []
    for compiled in _compile_choices(arguments, bench):
        for named in _configs(arguments, bench):
            for sized in _lengths(named, arguments, bench):
                for group, names in _groups(_settings(arguments, compiled), compiled):
                    made.append(_case(f"step{group}", sized, names, dtype, bench, compiled))
    for named in _configs(arguments, bench) if bench.on_gpu else ():
        for length in arguments.seq or (named.own_length,):
            largest += _largest_cases(named.sized(length, micro_batch=1), _settings(arguments, False), dtype)
    return sorted(made, key=lambda case: OWN not in case.key) + largest


def _largest_cases(named: NamedConfig, settings: Sequence[BenchmarkSetting], dtype: torch.dtype) -> list[Case]:
    """One for each attention."""
    made = []
    for attention in dict.fromkeys(setting.attention for setting in settings):
        names = [setting for setting in settings if setting.attention == attention]
        key = f"largest batch, {attention}, {_size(named)} [{len(names)} settings]"
        made.append(largest_case(key, named, names, dtype, 20 + 20 * len(names)))
    return made


def _groups(settings: Sequence[BenchmarkSetting], compiled: bool) -> list[tuple[str, list[BenchmarkSetting]]]:
    """(part of the key, settings) of each case."""
    if not compiled:
        return [("", list(settings))]
    groups = []
    for attention in dict.fromkeys(setting.attention for setting in settings):
        own = (setting for setting in settings if setting.attention == attention)
        groups.append((f" {attention}", [BenchmarkSetting(attention, "none"), *own]))
    return groups


def sweep(arguments: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """Lengths at micro-batch 1, then micro-batches at the config's length."""
    lengths = arguments.seq or (GPU_SEQUENCES if bench.on_gpu else (32, 64, 128))
    batches = arguments.micro_batch or ((1, 2, 4, 8, 16) if bench.on_gpu else (1, 2, 4))
    made: dict[str, Case] = {}
    for named in _configs(arguments, bench, one=True):
        sizes = [(length, 1) for length in lengths] + [(named.own_length, batch) for batch in batches]
        for length, batch in sizes:
            settings = _settings(arguments, False, SWEPT)
            case = _case("sweep", named.sized(length, batch), settings, dtype, bench)
            made[case.key] = case
    return list(made.values())


def baselines(arguments: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """One case a baseline, each with our settings beside it: on a GPU two large models fit at a time, not five."""
    made = []
    for named in _configs(arguments, bench):
        for sized in _lengths(named, arguments, bench, every=False):
            if bench.on_gpu and not arguments.micro_batch and named.name in BESIDE_A_BASELINE:
                sized = sized.sized(micro_batch=BESIDE_A_BASELINE[named.name])
            for name in arguments.baseline or BASELINES:
                compiled = name == "plain-compiled"
                settings = _settings(arguments, False, BESIDE_BASELINES)
                if compiled:
                    settings += [BenchmarkSetting("unfused", "selective", True), BenchmarkSetting("fused", "all", True)]
                makers = baseline_makers([name], sized.config, bench.device, dtype)
                made.append(_case(f"baseline {name}:", sized, settings, dtype, bench, compiled, makers))
    return made


def _size(named: NamedConfig) -> str:
    length = named.config.model.seq_length
    own = OWN if length == named.own_length else " "
    return f"{named.name} s={length}{own}b={named.config.training.micro_batch_size}"


def _case(
    kind: str,
    named: NamedConfig,
    settings: Sequence[BenchmarkSetting],
    dtype: torch.dtype,
    bench: Bench,
    compiled: bool = False,
    makers: Sequence = (),
) -> Case:
    precision = str(dtype).removeprefix("torch.")
    key = f"{kind} {_size(named)} {precision}{' compiled' * compiled} [{len(settings)} settings]"
    graphs = sum(setting.compiled for setting in settings) + 4 * (compiled and bool(makers))
    once = (25 + 15 * graphs) if bench.on_gpu else (10 + 10 * graphs)
    return step_case(key, named, settings, dtype, bench.seconds + once, makers)


def _configs(arguments: argparse.Namespace, bench: Bench, one: bool = False) -> list[NamedConfig]:
    names = arguments.config or (GPU_CONFIGS if bench.on_gpu else CPU_CONFIGS)[: 1 if one else None]
    return [read_config(name) for name in names]


def _lengths(
    named: NamedConfig, arguments: argparse.Namespace, bench: Bench, every: bool = True
) -> list[NamedConfig]:  # fmt: skip
    """The config at every length asked for; without a micro-batch it keeps its tokens a micro-batch."""
    own = named.own_length
    lengths = arguments.seq or ((own, *(s for s in GPU_SEQUENCES if s != own)) if bench.on_gpu and every else (own,))
    tokens = own * named.config.training.micro_batch_size
    return [
        named.sized(length, batch)
        for length in lengths
        for batch in (arguments.micro_batch or [max(tokens // length, 1)])
    ]


def _settings(
    arguments: argparse.Namespace, compiled: bool, default: Sequence[tuple[str, str]] | None = None
) -> list[BenchmarkSetting]:
    """What --attention and --recompute name, all by default; `none` first, since the others are compared with it."""
    if not arguments.attention and not arguments.recompute and default:
        return [BenchmarkSetting(*names, compiled) for names in default]
    made = []
    for attention in (name for name in ATTENTIONS if name in (arguments.attention or ATTENTIONS)):
        names = arguments.recompute or [
            name for name in RECOMPUTE if attention == "unfused" or name not in SAME_WITHOUT_SCORES
        ]
        made += [BenchmarkSetting(attention, name, compiled) for name in RECOMPUTE if name in names]
    return made


def _compile_choices(arguments: argparse.Namespace, bench: Bench) -> list[bool]:
    choice = arguments.compile or ("both" if bench.on_gpu else "no")
    return {"no": [False], "yes": [True], "both": [False, True]}[choice]
