"""Models that train on random data, each with several ways to run: what step benchmarks time and what checks compare.

A family is one model with one optimizer; its variants share the weights, so that settings of a large model can take
turns on one GPU. Every family, baselines included, has the same optimizer with fp32 master weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.configs import under
from benchmarks.settings import BenchmarkSetting
from megaselect.config import Config
from megaselect.errors import RecomputeError
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.attention import CORE_ATTENTION
from megaselect.models.gpt.model import GPT
from megaselect.prediction.saved_bytes import check_saves
from megaselect.recomputation.plan import make_plan
from megaselect.training.optimizer import MixedPrecisionAdamW

DATA_SEED = 1234

Loss = Callable[["RandomBatch"], Tensor]
Cores = dict[tuple[str, float | None], list[nn.Module]]


class RandomBatch(NamedTuple):
    """tokens, targets: int64 [b, s]; sample_index: int64 [b]."""

    tokens: Tensor
    targets: Tensor
    sample_index: Tensor


@dataclass
class Family:
    """variants: name -> prepares the model for that way to run. loss: of a batch, by the variant prepared last."""

    name: str
    model: nn.Module
    optimizer: MixedPrecisionAdamW
    variants: Mapping[str, Callable[[], None]]
    loss: Loss
    learning_rate: float

    def drop_gradients(self) -> None:
        """Also what an interrupted backward has left."""
        self.model.zero_grad(set_to_none=True)
        for master in self.optimizer.masters.values():
            master.grad = None

    def gradients(self) -> Iterator[Tensor | None]:
        """Of the micro-batches since the last step; in 16 bit they live with the master weights, as exact fp32."""
        return (master.grad for master in self.optimizer.masters.values())


def random_batch(config: Config, number: int, device: torch.device) -> RandomBatch:
    """The number-th micro-batch of a stream that depends on nothing else, already on the device."""
    size, sequence = config.training.micro_batch_size, config.model.seq_length
    generator = torch.Generator().manual_seed(DATA_SEED + number)
    window = torch.randint(config.model.vocab_size, (size, sequence + 1), generator=generator)
    sample_index = torch.arange(number * size, (number + 1) * size)
    tensors = (window[:, :-1].clone(), window[:, 1:].clone(), sample_index)  # storages of their own, at b = 1 too
    return RandomBatch(*(tensor.to(device) for tensor in tensors))


def megaselect_family(
    config: Config, settings: Sequence[BenchmarkSetting], device: torch.device, dtype: torch.dtype
) -> Family:
    """Our model; variants by the settings' labels."""
    training = config.training
    with torch.device("meta"):
        model = GPT(config.model, training.seed, training.loss_chunk_tokens)
    fill(model, config, device, dtype)

    cores: Cores = {}  # so that a setting always runs the same objects, whose graphs are compiled already

    def preparing(setting: BenchmarkSetting) -> Callable[[], None]:
        return functools.partial(prepare, model, under(config, setting), cores)

    return Family(
        "Megaselect",
        model,
        MixedPrecisionAdamW(model, training),
        {setting.label: preparing(setting) for setting in settings},
        lambda batch: model(*batch),
        training.lr,
    )


def prepare(model: GPT, config: Config, cores: Cores) -> None:
    """Give a model another attention (which holds no weights) and other recompute settings."""
    key = (config.model.attention, config.model.attention_dropout_p)
    if key not in cores:
        make = CORE_ATTENTION[config.model.attention]
        like = next(model.parameters())
        made = (make(config.model, config.training.seed, layer) for layer in range(config.model.num_layers))
        cores[key] = [core.to(device=like.device, dtype=like.dtype) for core in made]
    for block, core in zip(model.layers, cores[key], strict=True):
        block.attention.core = core
    apply_recompute(model, make_plan(config.recompute, config.model.num_layers), compiled=config.training.compile)


def refusal(config: Config, dtype: torch.dtype) -> str:
    """Why a setting cannot run, or nothing."""
    try:
        check_saves(config, dtype.itemsize)
    except RecomputeError as error:
        return str(error)
    return ""


def fill(model: nn.Module, config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a model without buffers from the meta device to another, and draw its weights there."""
    model.to(dtype).to_empty(device=device)
    draw(model, config, device)


@torch.no_grad()
def draw(model: nn.Module, config: Config, device: torch.device) -> None:
    """Random weights, drawn on the device itself: in seconds for a billion of them.

    Matrices N(0, init_std); vectors 0, but for the weights of layernorms, which are 1.
    """
    generator = torch.Generator(device).manual_seed(config.training.seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, config.model.init_std, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
