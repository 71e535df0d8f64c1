"""Parameters, and the bytes that a rank holds of them, of their gradients and of the optimizer. No torch.

Bytes a parameter as megaselect/training/optimizer.py keeps them: weight e, gradient 4, two moments 8, and where the
model computes in 16 bit an fp32 master weight 4. Tensor-parallel ranks divide matrices and the vocabulary; layernorms,
and the biases that are added after a sum over ranks, are whole on each. Data-parallel ranks that share a model cut
every tensor by rows, and hold fp32 weights alone: 16-bit ones are made as they are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from megaselect.distributed.layout import Layout
from megaselect.prediction.saved_bytes import FP32_BYTES, LayerShape

TENSORS_PER_LAYER = 12
FINAL_TENSORS = 2  # the final layernorm's
MOMENTS = 2


class ParameterShape(NamedTuple):
    """A parameter: a vector has rows of one element."""

    rows: int
    width: int = 1

    @property
    def elements(self) -> int:
        """All of them."""
        return self.rows * self.width

    def shard(self, shards: int) -> ParameterShape:
        """The first of so many, which is the fullest: rows are rounded up."""
        return ParameterShape(-(-self.rows // shards), self.width)


def layer_parameters(shape: LayerShape) -> dict[str, ParameterShape]:
    """Those of one layer on one tensor-parallel rank, by name, in the model's order."""
    hidden, ffn, ranks = shape.hidden, shape.ffn, shape.tensor_parallel
    vector = ParameterShape(hidden)
    return {
        "ln1.weight": vector,
        "ln1.bias": vector,
        "qkv.weight": ParameterShape(3 * hidden // ranks, hidden),
        "qkv.bias": ParameterShape(3 * hidden // ranks),
        "projection.weight": ParameterShape(hidden, hidden // ranks),
        "attention_dropout.bias": vector,
        "ln2.weight": vector,
        "ln2.bias": vector,
        "fc1.weight": ParameterShape(ffn // ranks, hidden),
        "fc1.bias": ParameterShape(ffn // ranks),
        "fc2.weight": ParameterShape(hidden, ffn // ranks),
        "mlp_dropout.bias": vector,
    }


def outside_parameters(shape: LayerShape, first: bool = True, last: bool = True) -> list[ParameterShape]:
    """Those outside the layers of a pipeline stage. The first has the embeddings, the last the final layernorm and the
    tied token embedding again.
    """
    token = [ParameterShape(shape.padded_vocab // shape.tensor_parallel, shape.hidden)] if first or last else []
    position = [ParameterShape(shape.sequence, shape.hidden)] if first else []
    return token + position + ([ParameterShape(shape.hidden)] * FINAL_TENSORS if last else [])


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
        sizes = {name: parameter.elements for name, parameter in layer_parameters(shape).items()}
        return cls(
            qkv=sizes["qkv.weight"] + sizes["qkv.bias"],
            projection=sizes["projection.weight"],
            fc1=sizes["fc1.weight"] + sizes["fc1.bias"],
            fc2=sizes["fc2.weight"],
            layernorm=sizes["ln1.weight"] + sizes["ln1.bias"],
            output_bias=sizes["mlp_dropout.bias"],
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
    """Of a pipeline stage, on one rank."""
    outside = sum(parameter.elements for parameter in outside_parameters(shape, first, last))
    return layers * LayerWeights.of(shape).total + outside


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
    shape: LayerShape, layers: int, layout: Layout | None = None, first: bool = True, last: bool = True
) -> StaticBytes:
    """Of the fullest rank of a layout, of a pipeline stage. AdamW keeps a 4-byte step count for each tensor.

    Of ranks that each hold the whole model gradients are those at the end of a step.
    """
    shards = (layout or Layout()).shards
    of_layer = sum(parameter.shard(shards).elements for parameter in layer_parameters(shape).values())
    outside = sum(parameter.shard(shards).elements for parameter in outside_parameters(shape, first, last))
    held = FP32_BYTES * (layers * of_layer + outside)
    copies = shards == 1 and shape.element_bytes < FP32_BYTES
    return StaticBytes(
        weights=held // FP32_BYTES * shape.element_bytes if copies else held,
        gradients=held,
        master_weights=held if copies else 0,
        optimizer=MOMENTS * held + stage_tensors(layers, first, last) * FP32_BYTES,
    )


def tensor_count(layers: int) -> int:
    """Parameter tensors of a whole model."""
    return stage_tensors(layers, first=True, last=True)


def stage_tensors(layers: int, first: bool, last: bool) -> int:
    """Parameter tensors of a stage: the token embedding's, the positions', the final layernorm's two."""
    return layers * TENSORS_PER_LAYER + (first or last) + first + FINAL_TENSORS * last


def norm_bytes(shape: LayerShape, layers: int, layout: Layout, first: bool = True, last: bool = True) -> int:
    """What the gradients' norm takes in fp64: a block of a tensor's squares, and the sums of the rows up to there; then
    what those of all are added up with.
    """
    outside, of_layer = outside_parameters(shape, first, last), list(layer_parameters(shape).values())
    final = FINAL_TENSORS if last else 0
    embeddings, after = outside[: len(outside) - final], outside[len(outside) - final :]
    other_layers = (layers - 1) * sum(one.shard(layout.shards).rows for one in of_layer)
    most, done = 0, 0
    for number, parameter in enumerate(embeddings + of_layer + after):
        rows, width = parameter.shard(layout.shards)
        done += rows + (other_layers if number == len(embeddings) else 0)
        most = max(most, done + min(rows, max(NORM_BLOCK_ELEMENTS // width, 1)) * width)
    return FP64_BYTES * max(most, NORM_ROW_VECTORS * done)


# megaselect/training/gradient_norm.py: elements at a time, and numbers a row that its sums are added up with.
NORM_BLOCK_ELEMENTS = 1 << 18
NORM_ROW_VECTORS = 5
FP64_BYTES = 8
