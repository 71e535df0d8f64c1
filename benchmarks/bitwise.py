"""Do all recompute settings give the same bits? Loss and every gradient of a whole model, compared by value.

Two layers of the width that the head size asks for, dropout 0.1 (0 in attention for sdpa). Within each attention every
setting is compared with `none`, which is also run a second time: where that differs, the device does not repeat itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.configs import under
from benchmarks.families import Family, RandomBatch, megaselect_family, random_batch, refusal
from benchmarks.runner import Bench, Case, Row
from benchmarks.settings import ATTENTIONS, BenchmarkSetting
from megaselect.config import Config

LAYERS, HEADS, VOCABULARY = 2, 4, 1000
SETTINGS = ("none", "selective", "dropout", "core_attn", "layernorm", "all", "full")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class CaseShape:
    """dtype: of DTYPES; head_size, sequence, micro_batch: d, s, b."""

    dtype: str
    head_size: int
    sequence: int
    micro_batch: int

    @property
    def config(self) -> Config:
        """A model of this shape."""
        model = {
            "num_layers": LAYERS,
            "hidden_size": HEADS * self.head_size,
            "num_attention_heads": HEADS,
            "seq_length": self.sequence,
            "vocab_size": VOCABULARY,
        }
        training = {"micro_batch_size": self.micro_batch, "global_batch_size": self.micro_batch}
        return Config.from_dict({"model": model, "training": training})


GPU_SHAPES = (
    CaseShape("bf16", 64, 1024, 4),
    CaseShape("bf16", 128, 2048, 1),
    CaseShape("bf16", 120, 1024, 1),
    CaseShape("bf16", 64, 1100, 1),
    CaseShape("fp16", 64, 1024, 1),
    CaseShape("fp32", 64, 1024, 1),
    CaseShape("bf16", 128, 1024, 4),
    CaseShape("fp16", 120, 1024, 4),
    CaseShape("fp32", 128, 1024, 4),
)
CPU_SHAPES = (CaseShape("fp32", 64, 128, 1), CaseShape("bf16", 64, 96, 2))


def cases(bench: Bench, compiled: bool = False, attentions: Sequence[str] = ATTENTIONS) -> list[Case]:
    """One case a shape; with `compiled` only the first, whose settings are then compiled."""
    shapes = GPU_SHAPES if bench.on_gpu else CPU_SHAPES
    made = []
    for shape in shapes[:1] if compiled else shapes:
        key = f"bits {shape.dtype} d={shape.head_size} s={shape.sequence} b={shape.micro_batch}"
        run = functools.partial(_run, shape, tuple(attentions), compiled)
        made.append(Case(key + ", compiled" * compiled, run, 180 if compiled else 20))
    return made


def _run(shape: CaseShape, attentions: Sequence[str], compiled: bool, bench: Bench) -> list[Row]:
    dtype, config = DTYPES[shape.dtype], shape.config
    settings = [BenchmarkSetting(attention, name, compiled) for attention in attentions for name in SETTINGS]
    refused = {setting: refusal(under(config, setting), dtype) for setting in settings}
    allowed = [setting for setting in settings if not refused[setting]]
    family = megaselect_family(config, allowed, bench.device, dtype)
    batch = random_batch(config, 1, bench.device)
    rows = []
    for attention in attentions:
        names = [setting for setting in allowed if setting.attention == attention]
        rows += [{**dataclasses.asdict(shape), **row} for row in _compare(bench, family, names, batch)]
    return rows


def _compare(bench: Bench, family: Family, settings: Sequence[BenchmarkSetting], batch: RandomBatch) -> list[Row]:
    """A row for each setting but the first, which the others are compared with; and one for the first, run again."""
    rows: list[Row] = []
    expected: list[Tensor] = []
    names = ["loss", *family.optimizer.masters]

    def compare(setting: BenchmarkSetting, row: Row) -> None:
        results = _results(family, setting, batch)
        row["tensors"] = len(results)
        if expected:
            pairs = zip(names, expected, results, strict=True)
            row["different"] = [name for name, left, right in pairs if not torch.equal(left, right)]
        else:
            expected.extend(results)

    for number, setting in enumerate((settings[0], *settings)):
        row: Row = {"contender": setting.label}
        work = functools.partial(compare, setting, row)
        row["status"], row["reason"] = bench.attempt(f"{setting.label}{' first' * (number == 0)}", work)
        if row["status"] != "ok":
            family.drop_gradients()
        if "different" in row or row["status"] != "ok":
            rows.append(row)
    return rows


def _results(family: Family, setting: BenchmarkSetting, batch: RandomBatch) -> list[Tensor]:
    """Loss and all gradients. Raises ValueError where one is missing or not finite: such bits would prove nothing."""
    family.variants[setting.label]()
    loss = family.loss(batch)
    family.optimizer.backward(loss)  # scaled in fp16, where most gradients would else be 0
    gradients = list(family.gradients())
    family.drop_gradients()
    results = [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
    if len(results) != 1 + len(gradients):
        raise ValueError(f"{1 + len(gradients) - len(results)} gradients are missing")
    finite = torch.stack([tensor.isfinite().all() for tensor in results])
    if not finite.all():
        raise ValueError(f"{int((~finite).sum())} of {len(results)} tensors are not finite")
    return results
