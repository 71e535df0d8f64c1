"""Predicted bytes, by arithmetic alone: the only place that knows byte formulas. No torch.

Symbols as in Korthikanti et al. 2022: s sequence length, b micro-batch size, h hidden size, a attention heads, L
layers, V padded vocabulary, t tensor-parallel ranks. e is the size of an activation's element in bytes. The table is in
docs/recompute.md. Bytes are those of one rank; pipeline stages are in megaselect/prediction/parallel.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megaselect.errors import RecomputeError
from megaselect.recomputation.plan import RecomputePlan, make_plan
from megaselect.recompute_modules import ONLY_INSTEAD, RECOMPUTE_MODULES, declared, tensors_saved

if TYPE_CHECKING:
    from megaselect.config import Config, RecomputeConfig

FP32_BYTES, INT64_BYTES, MASK_BYTES = 4, 8, 1


class SavedTensor(NamedTuple):
    """A tensor saved for backward: the layer or chunk it belongs to ("" outside the layers), its name, its bytes."""

    layer: str
    name: str
    bytes: int


@dataclass(frozen=True)
class LayerShape:
    """What the bytes of a model depend on, apart from the plan.

    element_bytes: of an activation. *_dropout: whether it drops anything. chunked_loss: logits are not kept.
    tensor_parallel: ranks that share each layer, with sequence_parallel also what lies between its products. It divides
    heads, widths and vocabulary (and the sequence) without rest.
    """

    sequence: int
    batch: int
    hidden: int
    ffn: int
    heads: int
    padded_vocab: int
    element_bytes: int
    attention_dropout: bool
    hidden_dropout: bool
    attention: str = "unfused"
    compiled: bool = False
    chunked_loss: bool = False
    tensor_parallel: int = 1
    sequence_parallel: bool = False

    @classmethod
    def of(cls, config: Config, element_bytes: int, batch: int | None = None) -> LayerShape:
        """The shape of one micro-batch of a config's run."""
        model = config.model
        return cls(
            sequence=model.seq_length,
            batch=config.training.micro_batch_size if batch is None else batch,
            hidden=model.hidden_size,
            ffn=model.ffn_hidden_size,
            heads=model.num_attention_heads,
            padded_vocab=model.padded_vocab_size,
            element_bytes=element_bytes,
            attention_dropout=model.attention_dropout_p > 0,
            hidden_dropout=model.hidden_dropout_p > 0,
            attention=model.attention,
            compiled=config.training.compile,
            chunked_loss=config.training.loss_chunk_tokens is not None,
        )

    @property
    def tokens(self) -> int:
        """sb"""
        return self.sequence * self.batch

    @property
    def residual_tokens(self) -> int:
        """Tokens whose residual stream, layernorms and hidden dropout a rank computes."""
        return self.tokens // self.tensor_parallel if self.sequence_parallel else self.tokens

    @property
    def hidden_bytes(self) -> int:
        """sbh elements of the residual stream: 2sbh bytes in 16 bit, divided by t with sequence parallelism."""
        return self.residual_tokens * self.hidden * self.element_bytes

    @property
    def inner_bytes(self) -> int:
        """sbh/t elements: a rank's part of q, of k, of v, or of the context."""
        return self.tokens * self.hidden * self.element_bytes // self.tensor_parallel

    @property
    def ffn_bytes(self) -> int:
        """A rank's part of the fc1 output."""
        return self.tokens * self.ffn * self.element_bytes // self.tensor_parallel

    @property
    def scores(self) -> int:
        """as²b/t, as a count of elements."""
        return self.heads * self.sequence**2 * self.batch // self.tensor_parallel

    @property
    def scores_bytes(self) -> int:
        """2as²b/t in 16 bit."""
        return self.scores * self.element_bytes

    @property
    def hidden_mask_bytes(self) -> int:
        """A hidden dropout mask, where there is one."""
        return self.residual_tokens * self.hidden * MASK_BYTES if self.hidden_dropout else 0

    @property
    def logits_bytes(self) -> int:
        """A rank's part of the logits, 2sbV/t in 16 bit."""
        return self.tokens * self.padded_vocab * self.element_bytes // self.tensor_parallel

    @property
    def row_statistic_bytes(self) -> int:
        """One fp32 number for each row of the scores."""
        return self.heads * self.tokens * FP32_BYTES // self.tensor_parallel


def layer_tensors(shape: LayerShape, modules: frozenset[str]) -> dict[str, int]:
    """Name -> bytes of what one layer saves when selective recomputes `modules` (none: empty)."""
    sizes = layer_sizes(shape)
    saved = tensors_saved(sizes.keys() - ONLY_INSTEAD, list(declared(modules, shape.attention, shape.compiled)))
    return {name: size for name, size in sizes.items() if name in saved and size}


def layer_sizes(shape: LayerShape) -> dict[str, int]:
    """Name -> bytes of every tensor of a layer that some setting saves, in the order of the forward pass."""
    statistics = 2 * shape.residual_tokens * FP32_BYTES  # mean, 1/deviation
    return {
        "block input": shape.hidden_bytes,
        "ln1 statistics": statistics,
        "ln1 output": shape.hidden_bytes,
        "q, k, v": 3 * shape.inner_bytes,
        **(_unfused_attention_sizes(shape) if shape.attention == "unfused" else _flash_attention_sizes(shape)),
        "context": shape.inner_bytes,
        "projection dropout mask": shape.hidden_mask_bytes,
        "ln2 input": shape.hidden_bytes,
        "ln2 statistics": statistics,
        "ln2 output": shape.hidden_bytes,
        "fc1 output": shape.ffn_bytes,
        "gelu output": shape.ffn_bytes,
        "MLP dropout mask": shape.hidden_mask_bytes,
    }


def _unfused_attention_sizes(shape: LayerShape) -> dict[str, int]:
    return {
        "scores": shape.scores_bytes,
        "softmax statistics": 2 * shape.row_statistic_bytes,
        "probs": shape.scores_bytes,
        "attention dropout mask": shape.scores * MASK_BYTES if shape.attention_dropout else 0,
        "dropped probs": shape.scores_bytes if shape.attention_dropout else 0,
    }


def _flash_attention_sizes(shape: LayerShape) -> dict[str, int]:
    return {"log-sum-exp": shape.row_statistic_bytes}


def outside_tensors(shape: LayerShape, plan: RecomputePlan, with_regions: bool | None = None) -> dict[str, int]:
    """Name -> bytes of what is kept outside the layers. with_regions: see has_region; None: as in the plan."""
    if with_regions is None:
        layers = [(chunk.checkpointed, plan.modules[chunk.first]) for chunk in plan.chunks]
        with_regions = any(has_region(shape, *layer) for layer in layers)
    dropout = shape.attention_dropout or shape.hidden_dropout
    tensors = {
        "token indices": shape.tokens * INT64_BYTES,
        "sample indices": shape.batch * INT64_BYTES if dropout or with_regions else 0,
        "embedding dropout mask": 0 if plan.recompute_embedding_mask else shape.hidden_mask_bytes,
        "final layernorm input": shape.hidden_bytes,
        "final layernorm statistics": 2 * shape.residual_tokens * FP32_BYTES,
        "final layernorm output": shape.hidden_bytes,
        "logits": 0 if shape.chunked_loss else shape.logits_bytes,
        "targets": shape.tokens * INT64_BYTES,
        "log-sum-exp": shape.tokens * FP32_BYTES,
    }
    return {name: size for name, size in tensors.items() if size}


def has_region(shape: LayerShape, checkpointed: bool, modules: frozenset[str]) -> bool:
    """Whether what runs again in a layer starts from the sample indices, dropout or not: a layer or its attention."""
    return checkpointed or "context" in products_again(shape, modules)


def products_again(shape: LayerShape, modules: frozenset[str]) -> set[str]:
    """Matrix products that a layer computes again in backward when selective recomputes `modules`."""
    return {product for module in declared(modules, shape.attention, shape.compiled) for product in module.products}


def remade_bytes(shape: LayerShape, modules: frozenset[str]) -> int:
    """Tensors that operators of their own write again in a layer's backward when selective recomputes `modules`."""
    sizes = layer_sizes(shape)
    used = declared(modules, shape.attention, shape.compiled)
    return sum(sizes[name] for module in used for name in module.remakes)


def saved_tensors(shape: LayerShape, plan: RecomputePlan) -> list[SavedTensor]:
    """Every tensor that one micro-batch saves for backward, layer by layer, then outside the layers."""
    rows: list[SavedTensor] = []
    for chunk in plan.chunks:
        if chunk.checkpointed:
            rows.append(SavedTensor(chunk.name, "block input", shape.hidden_bytes))
            continue
        kept = layer_tensors(shape, plan.modules[chunk.first])
        rows += [SavedTensor(chunk.name, name, size) for name, size in kept.items()]
    return rows + [SavedTensor("", name, size) for name, size in outside_tensors(shape, plan).items()]


def saved_bytes(shape: LayerShape, plan: RecomputePlan) -> int:
    """All bytes that one micro-batch saves for backward."""
    return sum(row.bytes for row in saved_tensors(shape, plan))


def bytes_per_layer(shape: LayerShape, plan: RecomputePlan) -> dict[str, int]:
    """Layer or chunk name -> bytes."""
    totals = {chunk.name: 0 for chunk in plan.chunks}
    for row in saved_tensors(shape, plan):
        if row.layer:
            totals[row.layer] += row.bytes
    return totals


def check_saves(config: Config, element_bytes: int) -> None:
    """Raises RecomputeError for recompute settings that would keep as much as `none` does: never a silent no-op.

    element_bytes: of an activation in the run's dtype.
    """
    settings = config.recompute
    if settings.mode in ("none", "auto"):
        return
    plan = make_plan(settings, config.model.num_layers)
    keep_all = make_plan(settings.model_copy(update={"mode": "none"}), config.model.num_layers)
    shape = LayerShape.of(config, element_bytes)
    saved = saved_bytes(shape, keep_all) - saved_bytes(shape, plan)
    if saved > 0:
        return
    reason = _reason(shape, settings, -saved)
    raise RecomputeError(
        f"recompute {settings.mode} with {_described(settings)} would save nothing: {reason}; "
        "use --recompute none, --recompute full or --recompute-modules all"
    )


def _reason(shape: LayerShape, settings: RecomputeConfig, excess: int) -> str:
    """Why a setting saves nothing."""
    reasons = []
    if not (shape.attention_dropout or shape.hidden_dropout) and "dropout" in settings.modules:
        reasons.append("dropout_p is 0, so there are no masks")
    if shape.attention != "unfused" and any(RECOMPUTE_MODULES[name].needs_scores for name in settings.modules):
        reasons.append(f"{shape.attention} attention keeps no scores or probs as it is")
    elif "softmax" in settings.modules and reasons:
        reasons.append("scores would be kept in place of probs")
    elif shape.attention != "unfused" and "dropout" in settings.modules and not shape.hidden_dropout and not reasons:
        reasons.append(f"hidden dropout is 0, and {shape.attention} attention keeps no mask as it is")
    return ", and ".join(reasons) or f"it keeps {excess} bytes more than none in a micro-batch"


def _described(settings: RecomputeConfig) -> str:
    return f"modules {' '.join(settings.modules)}" if settings.mode == "selective" else f"method {settings.method}"
