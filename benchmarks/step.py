"""Step time, stored bytes and peak memory of the recompute modes and of a plain PyTorch GPT, interleaved in one run.

    python benchmarks/step.py --config tiny --steps 20

All models live at once and take one step each a round, so that what disturbs the machine disturbs them all alike. One
step is one micro-batch. Ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    MODES,
    MegaselectStep,
    RandomBatch,
    describe,
    environment,
    quantiles,
    random_batch,
    read_config,
    synchronise,
    table,
    write_json,
)
from plain_gpt import PlainStep
from torch import Tensor, nn

from megaselect.build import build_model
from megaselect.config import Config
from megaselect.devices import peak_flops, resolve_device, resolve_dtype
from megaselect.errors import MegaselectError
from megaselect.recompute import ledger
from megaselect.recompute.plan import make_plan
from megaselect.recompute.theory import Shape, stored_bytes
from megaselect.training.accounting import step_flops

PLAIN = "plain PyTorch"
WARM_UP_ROUNDS = 3

Step = Callable[[RandomBatch], float]


def main() -> int:
    """Exit status: 0, 1 where modes differ in a bit or in predicted bytes, 2 for settings that cannot run."""
    arguments = _parse()
    try:
        device = resolve_device(arguments.device)
        configs = {name: _config(arguments, name, device) for name in MODES if name in arguments.modes}
        plain = _config(arguments, "none", device) if PLAIN in arguments.modes else None
        return _benchmark(arguments, configs, plain, device)
    except MegaselectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parse() -> argparse.Namespace:
    every = [*MODES, PLAIN]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="tiny", help="name in configs/ or a YAML file (default tiny)")
    parser.add_argument("--steps", type=int, default=20, help="measured rounds (default 20)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--micro-batch-size", type=int, help="default: the config's")
    parser.add_argument("--modes", nargs="+", choices=every, default=every, help="where not all fit at once")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be at least 1")
    if "none" not in arguments.modes:
        parser.error("--modes must hold none: the others are compared with it")
    if arguments.dtype == "fp16" and PLAIN in arguments.modes:
        parser.error("the plain GPT has no loss scaling: name --modes without it for fp16")
    return arguments


def _config(arguments: argparse.Namespace, mode: str, device: torch.device) -> Config:
    overrides = {"training.device": device.type, "training.dtype": arguments.dtype, **MODES[mode]}
    size = arguments.micro_batch_size or read_config(arguments.config, {}).training.micro_batch_size
    batch = {"training.micro_batch_size": size, "training.global_batch_size": size}  # a step is one micro-batch
    return read_config(arguments.config, {**overrides, **batch})


def _benchmark(
    arguments: argparse.Namespace, configs: dict[str, Config], plain: Config | None, device: torch.device
) -> int:
    first = configs["none"]
    dtype = resolve_dtype(first.training.dtype, device)
    record = environment(device)
    print(describe(record))
    print(
        f"config {arguments.config}, {dtype}, micro-batch {first.training.micro_batch_size}, {arguments.steps} rounds\n"
    )

    figures: dict[str, dict[str, Any]] = {name: {} for name in (*configs, *([PLAIN] if plain else []))}
    differing = _compare_modes(configs, device, figures)
    makers: dict[str, Callable[[], Step]] = {name: _maker(config) for name, config in configs.items()}
    if plain:
        makers[PLAIN] = lambda: PlainStep(plain, device, dtype)
        model = PlainStep(plain, device, dtype).model
        batch = random_batch(plain, 0, device)
        figures[PLAIN] |= {"stored_predicted": None, "stored_measured": _stored(model, batch[:2])[1]}
        del model
    for name, make in makers.items():
        figures[name]["peak_bytes"] = _peak(make, first, device)
    seconds = _interleaved({name: make() for name, make in makers.items()}, first, arguments.steps, device)
    _add_times(figures, seconds, configs, dtype, device)
    print(_tables(figures))
    write_json(
        arguments.json,
        {**record, "config": first.to_dict(), "dtype": str(dtype), "modes_differing": differing, "figures": figures},
    )
    wrong = [name for name in configs if figures[name]["stored_predicted"] != figures[name]["stored_measured"]]
    return int(bool(differing or wrong))


def _maker(config: Config) -> Callable[[], Step]:
    return lambda: MegaselectStep(config)


def _compare_modes(configs: dict[str, Config], device: torch.device, figures: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the modes whose loss or gradients differ from those of none; also fills in the stored bytes."""
    expected: list[Tensor] = []
    differing = []
    for name, config in configs.items():
        model = build_model(config)
        loss, measured = _stored(model, random_batch(config, 0, device))
        loss.backward()
        results = [loss.detach(), *(parameter.grad for parameter in model.parameters())]
        shape = Shape.of(config, next(model.parameters()).element_size())
        predicted = stored_bytes(shape, make_plan(config.recompute, config.model.num_layers))
        figures[name] |= {"stored_predicted": predicted, "stored_measured": measured, "loss": loss.item()}
        expected = expected or results
        if not all(torch.equal(left, right) for left, right in zip(expected, results, strict=True)):
            differing.append(name)
    count = len(expected) - 1
    verdict = f"DIFFER from none: {', '.join(differing)}" if differing else "bitwise equal"
    print(f"loss and {count} gradients of {', '.join(configs)}: {verdict}\n")
    return differing


def _stored(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
    """(loss, bytes kept for its backward)."""
    with ledger.record(model) as kept:
        loss = model(*inputs)
    return loss, kept.total


def _peak(make: Callable[[], Step], config: Config, device: torch.device) -> int | None:
    """Most bytes of tensors during a step with this model alone, weights and optimizer included; None on a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    step = make()
    for number in range(2):  # the first step makes the moments
        torch.cuda.reset_peak_memory_stats(device)
        step(random_batch(config, number, device))
    return torch.cuda.max_memory_allocated(device) - before


def _interleaved(steps: dict[str, Step], config: Config, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step, by name and round. Each round starts with another name: none profits from its place."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for number in range(WARM_UP_ROUNDS + rounds):
        batch = random_batch(config, number, device)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            synchronise(device)
            started = time.perf_counter()
            steps[name](batch)
            synchronise(device)
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _add_times(
    figures: dict[str, dict[str, Any]],
    seconds: dict[str, list[float]],
    configs: dict[str, Config],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    none = configs["none"]
    tokens = none.training.micro_batch_size * none.model.seq_length
    peak = peak_flops(device, dtype)
    for name, taken in seconds.items():
        low, median, high = quantiles(taken)
        ratios = [mine / theirs for mine, theirs in zip(taken, seconds["none"], strict=True)]
        flops = step_flops(configs.get(name, none), dtype.itemsize)  # the plain GPT does the products of none
        figures[name] |= {
            "step_ms": {"q20": 1e3 * low, "median": 1e3 * median, "q80": 1e3 * high},
            "ratio_to_none": quantiles(ratios)._asdict(),
            "tokens_per_s": tokens / median,
            "mfu": flops.model / median / peak if peak else None,
            "hfu": flops.hardware / median / peak if peak else None,
            "all_step_ms": [1e3 * value for value in taken],
        }


def _tables(figures: dict[str, dict[str, Any]]) -> str:
    times, sizes = [], []
    for name, row in figures.items():
        step, ratio = row["step_ms"], row["ratio_to_none"]
        spread = f"{step['q20']:.1f} .. {step['q80']:.1f}"
        shares = [_percent(row["mfu"]), _percent(row["hfu"])]
        rate = f"{row['tokens_per_s']:,.0f}"
        times.append([name, f"{step['median']:.1f}", spread, f"{ratio['median']:.3f}", rate, *shares])
        sizes.append([name, *(_bytes(row[key]) for key in ("stored_predicted", "stored_measured", "peak_bytes"))])
    upper = table(["mode", "step ms", "20 .. 80 %", "to none", "tokens/s", "MFU", "HFU"], times)
    lower = table(["mode", "stored, predicted", "stored, measured", "peak bytes"], sizes)
    return f"{upper}\n\n{lower}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


if __name__ == "__main__":
    sys.exit(main())
