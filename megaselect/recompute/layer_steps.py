"""What one layer allocates and gives back, step by step, in forward and in backward. No torch.

The order is that of the model (megaselect/model/block.py), of autograd, and of the ops' own backward (kernels/). A
product's backward makes the gradients of input and weight side by side, then lets go of its output's gradient and of
its kept input.
"""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.recompute.heap import Heap
from megaselect.recompute.theory import FP32_BYTES, Shape, layer_tensors
from megaselect.recompute.weights import LayerWeights

# What a layer inside a checkpointed chunk keeps between its second forward and its backward.
INSIDE_FULL = frozenset({"softmax", "dropout"})


@dataclass(frozen=True)
class Setting:
    """shape; op_internals: count what ops allocate inside themselves, as a GPU's allocator does and a tracker of op
    results does not; accumulating: gradients of earlier micro-batches are there already; gradient_ranks: data-parallel
    ranks that share the fp32 gradients.
    """

    shape: Shape
    op_internals: bool
    accumulating: bool
    gradient_ranks: int = 1

    def inside(self, size: int) -> int:
        """The size of something inside an op, where it counts."""
        return size if self.op_internals else 0

    def gradient_bytes(self, parameters: int) -> int:
        """What the fp32 gradients of `parameters` elements add to those that are there."""
        return 0 if self.accumulating else -(-parameters * FP32_BYTES // self.gradient_ranks)

    def settle(self, heap: Heap, parameters: int) -> None:
        """A weight's gradient, of `parameters` elements in the compute dtype, joins the fp32 gradients."""
        if self.shape.element_bytes == FP32_BYTES:
            heap.brief(parameters * FP32_BYTES)
        else:
            heap.brief(parameters * self.shape.element_bytes + self.gradient_bytes(parameters))
        heap.hold(self.gradient_bytes(parameters))

    def product_backward(self, heap: Heap, made: dict[str, int], used: tuple[str, ...], parameters: int) -> None:
        """Backward of a matrix product with a weight."""
        heap.make(made)
        heap.brief(parameters * self.shape.element_bytes)
        heap.free(*used)
        self.settle(heap, parameters)


def run_forward(heap: Heap, setting: Setting, modules: frozenset[str], kept: bool, prefix: str = "") -> None:
    """One layer's forward; its input H is live already and not counted here. Leaves what it keeps, and its output.

    kept: keep what `modules` leave to keep; else (inside a checkpointed chunk) nothing. Names get the prefix.
    """
    shape = setting.shape
    stays = layer_tensors(shape, modules) if kept else {}

    def make(**tensors: int) -> None:
        heap.make({f"{prefix}{name.replace('_', ' ')}": size for name, size in tensors.items()})

    def drop(*names: str) -> None:
        heap.free(*(f"{prefix}{name}" for name in names if name not in stays))

    heap.make({f"{prefix}{name}": stays.get(name, 0) for name in ("ln1 statistics",)})
    make(ln1_output=shape.hidden_bytes)
    heap.make({f"{prefix}q, k, v": 3 * shape.inner_bytes})
    _attention_forward(heap, setting, modules, stays, prefix)
    drop("q, k, v", "ln1 output")
    make(attended=shape.hidden_bytes)
    drop("context")
    make(ln2_input=shape.hidden_bytes, ln2_output=shape.hidden_bytes)
    heap.make({f"{prefix}{name}": stays.get(name, 0) for name in ("ln2 statistics", "projection dropout mask")})
    drop("attended")
    make(fc1_output=shape.ffn_bytes)
    make(gelu_output=shape.ffn_bytes)
    drop("fc1 output")
    make(mlp_output=shape.hidden_bytes)
    drop("gelu output", "ln2 output")
    heap.make({f"{prefix}MLP dropout mask": stays.get("MLP dropout mask", 0)})
    make(output=shape.hidden_bytes)
    drop("mlp output", "ln2 input")
    heap.free(f"{prefix}output")  # the next layer's input


def _attention_forward(
    heap: Heap, setting: Setting, modules: frozenset[str], stays: dict[str, int], prefix: str
) -> None:  # fmt: skip
    shape = setting.shape
    if shape.attention == "unfused":
        heap.make({f"{prefix}scores": shape.scores_bytes})
        written = {name: stays.get(name, 0) for name in ("probs", "attention dropout mask", "dropped probs")}
        heap.make({f"{prefix}{name}": size for name, size in written.items()})
        inside = (
            0 if written["dropped probs"] or (written["probs"] and not shape.attention_dropout) else shape.scores_bytes
        )
        heap.make({f"{prefix}context": shape.inner_bytes})
        heap.brief(setting.inside(inside))
        heap.make({f"{prefix}softmax statistics": stays.get("softmax statistics", 0)})
        if "scores" not in stays:
            heap.free(f"{prefix}scores")
    else:
        heap.make({f"{prefix}context": shape.inner_bytes, f"{prefix}log-sum-exp": stays.get("log-sum-exp", 0)})


def run_backward(heap: Heap, setting: Setting, modules: frozenset[str], prefix: str = "") -> None:
    """One layer's backward. Live before: what it keeps (names with the prefix) and "gradient", H. After: "gradient"."""
    _mlp_backward(heap, setting, modules, prefix)
    _attention_backward(heap, setting, modules, prefix)


def _mlp_backward(heap: Heap, setting: Setting, modules: frozenset[str], prefix: str) -> None:
    shape, weights = setting.shape, LayerWeights.of(setting.shape)
    hidden = shape.hidden_bytes
    if shape.hidden_dropout:
        heap.make({"branch": hidden})
    heap.free(f"{prefix}MLP dropout mask")
    if "gelu" in modules:
        heap.make({f"{prefix}gelu output": shape.ffn_bytes})
    setting.product_backward(
        heap, {"of gelu": shape.ffn_bytes}, ("branch", f"{prefix}gelu output"), weights.fc2
    )  # fmt: skip
    heap.make({"of fc1": shape.ffn_bytes})
    heap.free("of gelu", f"{prefix}fc1 output")
    if "layernorm" in modules:
        heap.make({f"{prefix}ln2 output": hidden})
    setting.product_backward(heap, {"of ln2": hidden}, ("of fc1", f"{prefix}ln2 output"), weights.fc1)
    heap.make({"branch": hidden if shape.hidden_dropout else 0, "of residual": hidden})
    heap.free("of ln2", "gradient", *(f"{prefix}{name}" for name in ("ln2 input", "ln2 statistics")))
    heap.free(f"{prefix}projection dropout mask")
    setting.settle(heap, weights.layernorm + 2 * weights.output_bias)


def _attention_backward(heap: Heap, setting: Setting, modules: frozenset[str], prefix: str) -> None:
    shape, weights = setting.shape, LayerWeights.of(setting.shape)
    setting.product_backward(heap, {"of context": shape.inner_bytes}, ("branch",), weights.projection)
    if shape.attention == "unfused":
        _core_backward_unfused(heap, setting, modules, prefix)
    else:
        _core_backward_fused(heap, setting, prefix)
    if "layernorm" in modules:
        heap.make({f"{prefix}ln1 output": shape.hidden_bytes})
    setting.product_backward(
        heap, {"of ln1": shape.hidden_bytes}, ("of qkv", f"{prefix}ln1 output"), weights.qkv
    )  # fmt: skip
    heap.make({"gradient": shape.hidden_bytes})
    heap.free("of ln1", "of residual", f"{prefix}block input", f"{prefix}ln1 statistics")
    setting.settle(heap, weights.layernorm)


def _core_backward_unfused(heap: Heap, setting: Setting, modules: frozenset[str], prefix: str) -> None:
    """The op's backward; then that of q kᵀ, whose alpha is multiplied into a copy; then q, k and v side by side."""
    shape = setting.shape
    wide, inner = shape.scores_bytes, shape.inner_bytes
    kept = layer_tensors(shape, modules)
    rebuilt = {}
    if "core_attn" in modules and not shape.compiled:
        rebuilt = {"scores again": wide, "statistics again": 2 * shape.row_statistic_bytes, "context again": inner}
        heap.make(rebuilt)
        heap.brief(setting.inside(wide))
    keeps_dropped = "dropped probs" in kept or ("probs" in kept and not shape.attention_dropout)
    heap.make({"of scores": wide, "of value": inner})
    heap.brief(setting.inside(0 if keeps_dropped else wide))
    made = ("scores", "softmax statistics", "probs", "attention dropout mask", "dropped probs", "context")
    heap.free("of context", *rebuilt, *(f"{prefix}{name}" for name in made))
    heap.make({"of query": inner})
    heap.brief(inner)
    heap.make({"of key": inner})
    heap.brief(inner)
    heap.free("of scores", f"{prefix}q, k, v")
    heap.make({"of qkv": 3 * inner})
    heap.free("of query", "of key", "of value")


def _core_backward_fused(heap: Heap, setting: Setting, prefix: str) -> None:
    shape = setting.shape
    inner = shape.inner_bytes
    apart = shape.attention == "sdpa"
    heap.make({"of q, k and v": 3 * inner if apart else 0})
    if not apart:
        heap.make({"of qkv": 3 * inner})
        heap.brief(setting.inside(shape.row_statistic_bytes))
    heap.free("of context", *(f"{prefix}{name}" for name in ("context", "log-sum-exp", "q, k, v")))
    if apart:
        heap.make({"of qkv": 3 * inner})
        heap.free("of q, k and v")
