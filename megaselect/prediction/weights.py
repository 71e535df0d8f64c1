"""Parameters, and the bytes that a rank holds of them, of their gradients and of the optimizer. No torch.

Bytes a parameter as megaselect/training/optimizer.py keeps them: weight e, gradient 4, two moments 8, and where the
model computes in 16 bit an fp32 master weight 4. Tensor-parallel ranks divide matrices and the vocabulary; layernorms,
and the biases that are added after a sum over ranks, are whole on each.
"""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.prediction.saved_bytes import FP32_BYTES, LayerShape

TENSORS_PER_LAYER = 12
MOMENTS = 2
SHARDINGS = ("none", "optimizer", "gradients", "parameters")


@dataclass(frozen=True)
class LayerWeights:
    """Parameters of one layer on one rank, as counts; each product's with the bias that is added in it."""

    qkv: int
    projection: int
    fc1: int
    fc2: int
    layernorm: int  # one of the two
    output_bias: int  # one of the two that dropout adds

    @classmethod
    def of(cls, shape: LayerShape) -> LayerWeights:
        """Those of a layer of the shape."""
        hidden, ffn, ranks = shape.hidden, shape.ffn, shape.tensor_parallel
        return cls(
            qkv=3 * hidden * (hidden + 1) // ranks,
            projection=hidden * hidden // ranks,
            fc1=ffn * (hidden + 1) // ranks,
            fc2=hidden * ffn // ranks,
            layernorm=2 * hidden,
            output_bias=hidden,
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.qkv + self.projection + self.fc1 + self.fc2 + 2 * self.layernorm + 2 * self.output_bias


def embedding_parameters(shape: LayerShape) -> int:
    """The token embedding, which is the output product's weight too."""
    return shape.padded_vocab * shape.hidden // shape.tensor_parallel


def position_parameters(shape: LayerShape) -> int:
    """The position embedding."""
    return shape.sequence * shape.hidden


def parameter_count(shape: LayerShape, layers: int) -> int:
    """Of a whole model, on one rank."""
    return stage_parameters(shape, layers, first=True, last=True)


def stage_parameters(shape: LayerShape, layers: int, first: bool, last: bool) -> int:
    """Of a pipeline stage, on one rank. The first has the embeddings, the last the final layernorm and the tied token
    embedding again.
    """
    count = layers * LayerWeights.of(shape).total
    count += embedding_parameters(shape) if first or last else 0
    return count + (position_parameters(shape) if first else 0) + (2 * shape.hidden if last else 0)


@dataclass(frozen=True)
class StaticBytes:
    """What a rank holds from step to step, and the gradients that it holds at the end of backward."""

    weights: int
    gradients: int
    master_weights: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.master_weights + self.optimizer


def static_bytes(
    parameters: int, tensors: int, element_bytes: int, sharding: str = "none", ranks: int = 1
) -> StaticBytes:
    """tensors: AdamW keeps a 4-byte step count for each. sharding: what `ranks` data-parallel ranks share, as in ZeRO:
    the optimizer's state and master weights; with `gradients` those too; with `parameters` the weights too.
    """
    degree = SHARDINGS.index(sharding)

    def held(size: int, least_degree: int) -> int:
        return -(-size // ranks) if degree >= least_degree else size

    return StaticBytes(
        weights=held(parameters * element_bytes, 3),
        gradients=held(parameters * FP32_BYTES, 2),
        master_weights=held(parameters * FP32_BYTES, 1) if element_bytes < FP32_BYTES else 0,
        optimizer=held(MOMENTS * parameters * FP32_BYTES, 1) + tensors * FP32_BYTES,
    )


def tensor_count(layers: int) -> int:
    """Parameter tensors of a whole model."""
    return stage_tensors(layers, first=True, last=True)


def stage_tensors(layers: int, first: bool, last: bool) -> int:
    """Parameter tensors of a stage: the token embedding's, the positions', the final layernorm's two."""
    return layers * TENSORS_PER_LAYER + (first or last) + first + 2 * last
