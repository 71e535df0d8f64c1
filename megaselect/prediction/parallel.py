"""What one rank of a parallel run computes and keeps. No torch.

Symbols as in Korthikanti et al. 2022: t tensor-parallel ranks, p pipeline stages, m model chunks a stage (interleaved
schedule), L layers. The schedule is one forward, one backward: the first stage holds p micro-batches of its L/p layers
at once, with m chunks a stage p·m + p - 1 chunks of L/(p·m) layers. This package runs data-parallel ranks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megaselect.errors import ConfigError

if TYPE_CHECKING:
    from megaselect.config import Config
    from megaselect.prediction.saved_bytes import LayerShape


@dataclass(frozen=True)
class Parallel:
    """How `gpus` devices share a model, beside section `parallel`, which says what its data-parallel ranks share."""

    gpus: int = 1
    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual_stages: int = 1

    @property
    def data(self) -> int:
        """Data-parallel ranks, each of as many GPUs as divide a model."""
        return self.gpus // (self.tensor * self.pipeline)

    @property
    def is_run(self) -> bool:
        """Whether this package can train such a layout."""
        return self.tensor == self.pipeline == 1

    @property
    def model_chunks(self) -> int:
        """p·m: pieces that the stack of layers is cut into."""
        return self.pipeline * self.virtual_stages

    def check(self, config: Config) -> None:
        """Raises ConfigError where the model or the batch does not divide."""
        model, training = config.model, config.training
        ranks = self.tensor * self.pipeline
        if self.gpus % ranks:
            raise ConfigError(
                f"--gpus {self.gpus} is no multiple of tensor x pipeline = {self.tensor} x {self.pipeline}: "
                f"use a multiple of {ranks}"
            )
        if self.sequence and self.tensor == 1:
            raise ConfigError("--sequence-parallel divides by --tensor-parallel, which is 1: give both, or neither")
        if self.virtual_stages > 1 and self.pipeline == 1:
            raise ConfigError("--virtual-stages needs --pipeline-parallel of 2 or more")
        widths = {
            "model.num_attention_heads": model.num_attention_heads,
            "model.ffn_hidden_size": model.ffn_hidden_size,
            "the padded vocabulary": model.padded_vocab_size,
            **({"model.seq_length": model.seq_length} if self.sequence else {}),
        }
        for name, width in widths.items():
            _check_divides("--tensor-parallel", self.tensor, name, width)
        _check_divides("pipeline stages x virtual stages", self.model_chunks, "model.num_layers", model.num_layers)
        samples = training.micro_batch_size * self.data
        if training.global_batch_size % samples:
            raise ConfigError(
                f"{self.data} data-parallel ranks with --training.micro-batch-size {training.micro_batch_size} do not "
                f"divide --training.global-batch-size {training.global_batch_size}: use a multiple of {samples}"
            )


def _check_divides(name: str, divisor: int, of_name: str, number: int) -> None:
    if number % divisor:
        raise ConfigError(f"{name} ({divisor}) must divide {of_name} ({number})")


class Stage(NamedTuple):
    """One rank of the pipeline: its layers, and in how many of its model chunks a micro-batch waits for backward."""

    name: str
    first: bool
    last: bool
    layers: int
    in_flight: int


def stages(parallel: Parallel, layers: int, micro_batches: int) -> list[Stage]:
    """The first and the last: no other keeps more than the first, or has more outside the layers than the last."""
    if parallel.pipeline == 1:
        return [Stage("the only", True, True, layers, 1)]
    p, m = parallel.pipeline, parallel.virtual_stages
    most = micro_batches * m
    first = min(p if m == 1 else p * m + p - 1, most)
    last = min(1 if m == 1 else (m - 1) * p + 1, most)
    per_stage = layers // p
    return [Stage("first", True, False, per_stage, first), Stage("last", False, True, per_stage, last)]


def pipeline_output_bytes(shape: LayerShape, pipeline: int) -> int:
    """What the first stage holds where it does not free the outputs that it has sent on: p of them, 2sbhp in 16 bit.

    Korthikanti et al. 2022, appendix B; their figures take the output as undivided among tensor-parallel ranks.
    """
    return shape.hidden_bytes * pipeline
