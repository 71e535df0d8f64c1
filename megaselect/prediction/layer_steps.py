"""What one layer allocates and gives back, step by step, in forward and in backward. No torch.

The order is that of the model (megaselect/models/gpt/block.py), of autograd, and of the ops' own backward (kernels/). A
product's backward makes the gradients of input and weight side by side, then lets go of its output's gradient and of
its kept input.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megaselect.prediction.saved_bytes import FP32_BYTES, LayerShape, has_region, layer_sizes, layer_tensors
from megaselect.prediction.sharing import ParameterGroup, Sharing
from megaselect.prediction.simulated_allocator import SimulatedAllocator
from megaselect.prediction.weights import LayerWeights, layer_parameters

# What a layer inside a checkpointed chunk keeps between its second forward and its backward.
INSIDE_FULL = frozenset({"softmax", "dropout"})


@dataclass(frozen=True)
class StepContext:
    """shape; op_internals: count what ops allocate inside themselves, as a GPU's allocator does and a tracker of op
    results does not; accumulating: gradients of earlier micro-batches are there already; sharing: among data-parallel
    ranks.
    """

    shape: LayerShape
    op_internals: bool
    accumulating: bool
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def layer(self) -> ParameterGroup:
        """The parameters of one layer."""
        return ParameterGroup.of(layer_parameters(self.shape).values(), self.shape.element_bytes, self.sharing)

    @property
    def gradients_per_layer(self) -> int:
        """What a layer's backward leaves of its gradients."""
        return self.layer.added(self.accumulating)

    def inside(self, size: int) -> int:
        """The size of something inside an op, where it counts."""
        return size if self.op_internals else 0

    def gradient_bytes(self, parameters: int) -> int:
        """What the gradients of `parameters` elements add to those that are there, until they are reduced."""
        if self.sharing.takes_gradients:
            return parameters * self.shape.element_bytes
        return 0 if self.accumulating else parameters * FP32_BYTES

    def settle(self, allocator: SimulatedAllocator, parameters: int) -> None:
        """A weight's gradient, of `parameters` elements in the compute dtype, joins the fp32 gradients, or waits."""
        if self.sharing.takes_gradients or self.shape.element_bytes == FP32_BYTES:
            allocator.brief(parameters * self.shape.element_bytes)
        else:
            allocator.brief(parameters * self.shape.element_bytes + self.gradient_bytes(parameters))
        allocator.hold(self.gradient_bytes(parameters))

    def linear_backward(
        self, allocator: SimulatedAllocator, made: dict[str, int], used: tuple[str, ...], parameters: int
    ) -> None:
        """Backward of a matrix product with a weight."""
        allocator.make(made)
        allocator.brief(parameters * self.shape.element_bytes)
        allocator.free(*used)
        self.settle(allocator, parameters)


def run_forward(
    allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], kept: bool, prefix: str = ""
) -> None:
    """One layer's forward; its input H is live already and not counted here. Leaves what it keeps, and its output.

    kept: keep what `modules` leave to keep; else (inside a checkpointed chunk) nothing. Names get the prefix.
    """
    shape = context.shape
    stays = layer_tensors(shape, modules) if kept else {}

    def make(**tensors: int) -> None:
        allocator.make({f"{prefix}{name.replace('_', ' ')}": size for name, size in tensors.items()})

    def drop(*names: str) -> None:
        allocator.free(*(f"{prefix}{name}" for name in names if name not in stays))

    allocator.make({f"{prefix}{name}": stays.get(name, 0) for name in ("ln1 statistics",)})
    make(ln1_output=shape.hidden_bytes)
    allocator.make({f"{prefix}q, k, v": 3 * shape.inner_bytes})
    _attention_forward(allocator, context, modules, stays, prefix)
    drop("q, k, v", "ln1 output")
    make(attended=shape.hidden_bytes)
    drop("context")
    make(ln2_input=shape.hidden_bytes, ln2_output=shape.hidden_bytes)
    allocator.make({f"{prefix}{name}": stays.get(name, 0) for name in ("ln2 statistics", "projection dropout mask")})
    drop("attended")
    make(fc1_output=shape.ffn_bytes)
    make(gelu_output=shape.ffn_bytes)
    drop("fc1 output")
    make(mlp_output=shape.hidden_bytes)
    drop("gelu output", "ln2 output")
    allocator.make({f"{prefix}MLP dropout mask": stays.get("MLP dropout mask", 0)})
    make(output=shape.hidden_bytes)
    drop("mlp output", "ln2 input")
    allocator.free(f"{prefix}output")  # the next layer's input


def _attention_forward(
    allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], stays: dict[str, int], prefix: str
) -> None:  # fmt: skip
    shape = context.shape
    if shape.attention == "unfused":
        allocator.make({f"{prefix}scores": shape.scores_bytes})
        written = {name: stays.get(name, 0) for name in ("probs", "attention dropout mask", "dropped probs")}
        allocator.make({f"{prefix}{name}": size for name, size in written.items()})
        inside = (
            0 if written["dropped probs"] or (written["probs"] and not shape.attention_dropout) else shape.scores_bytes
        )
        allocator.make({f"{prefix}context": shape.inner_bytes})
        allocator.brief(context.inside(inside))
        allocator.make({f"{prefix}softmax statistics": stays.get("softmax statistics", 0)})
        if "scores" not in stays:
            allocator.free(f"{prefix}scores")
    else:
        allocator.make({f"{prefix}context": shape.inner_bytes, f"{prefix}log-sum-exp": stays.get("log-sum-exp", 0)})


def run_backward(
    allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], prefix: str = ""
) -> None:
    """One layer's backward. Live before: what it keeps (names with the prefix) and "gradient", H. After: "gradient".

    Its parameters' gradients are not reduced yet where they leave together.
    """
    _mlp_backward(allocator, context, modules, prefix)
    _attention_backward(allocator, context, modules, prefix)


def _mlp_backward(allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], prefix: str) -> None:
    shape, weights = context.shape, LayerWeights.of(context.shape)
    hidden = shape.hidden_bytes
    if shape.hidden_dropout:
        allocator.make({"branch": hidden})
    allocator.free(f"{prefix}MLP dropout mask")
    context.settle(allocator, weights.output_bias)
    _make_again(allocator, context, modules, prefix, "gelu output")
    context.linear_backward(
        allocator, {"of gelu": shape.ffn_bytes}, ("branch", f"{prefix}gelu output"), weights.fc2
    )  # fmt: skip
    allocator.make({"of fc1": shape.ffn_bytes})
    allocator.free("of gelu", f"{prefix}fc1 output")
    _make_again(allocator, context, modules, prefix, "ln2 output")
    context.linear_backward(allocator, {"of ln2": hidden}, ("of fc1", f"{prefix}ln2 output"), weights.fc1)
    allocator.make({"branch": hidden if shape.hidden_dropout else 0, "of residual": hidden})
    allocator.free("of ln2", "gradient", *(f"{prefix}{name}" for name in ("ln2 input", "ln2 statistics")))
    allocator.free(f"{prefix}projection dropout mask")
    context.settle(allocator, weights.layernorm + weights.output_bias)


def _make_again(
    allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], prefix: str, name: str
) -> None:  # fmt: skip
    """What a linear layer's backward needs and the layer did not save."""
    if name not in layer_tensors(context.shape, modules):
        allocator.make({f"{prefix}{name}": layer_sizes(context.shape)[name]})


def _attention_backward(
    allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], prefix: str
) -> None:
    shape, weights = context.shape, LayerWeights.of(context.shape)
    context.linear_backward(allocator, {"of context": shape.inner_bytes}, ("branch",), weights.projection)
    if shape.attention == "unfused":
        _core_backward_unfused(allocator, context, modules, prefix)
    else:
        _core_backward_fused(allocator, context, prefix)
    _make_again(allocator, context, modules, prefix, "ln1 output")
    context.linear_backward(
        allocator, {"of ln1": shape.hidden_bytes}, ("of qkv", f"{prefix}ln1 output"), weights.qkv
    )  # fmt: skip
    allocator.make({"gradient": shape.hidden_bytes})
    allocator.free("of ln1", "of residual", f"{prefix}block input", f"{prefix}ln1 statistics")
    context.settle(allocator, weights.layernorm)


def _core_backward_unfused(
    allocator: SimulatedAllocator, context: StepContext, modules: frozenset[str], prefix: str
) -> None:
    """The op's backward; then that of q kᵀ, whose alpha is multiplied into a copy; then q, k and v side by side."""
    shape = context.shape
    wide, inner = shape.scores_bytes, shape.inner_bytes
    kept = layer_tensors(shape, modules)
    recomputed = {}
    if has_region(shape, checkpointed=False, modules=modules):
        recomputed = {"scores again": wide, "statistics again": 2 * shape.row_statistic_bytes, "context again": inner}
        allocator.make(recomputed)
        allocator.brief(context.inside(wide))
    keeps_dropped = "dropped probs" in kept or ("probs" in kept and not shape.attention_dropout)
    allocator.make({"of scores": wide, "of value": inner})
    allocator.brief(context.inside(0 if keeps_dropped else wide))
    made = ("scores", "softmax statistics", "probs", "attention dropout mask", "dropped probs", "context")
    allocator.free("of context", *recomputed, *(f"{prefix}{name}" for name in made))
    allocator.make({"of query": inner})
    allocator.brief(inner)
    allocator.make({"of key": inner})
    allocator.brief(inner)
    allocator.free("of scores", f"{prefix}q, k, v")
    allocator.make({"of qkv": 3 * inner})
    allocator.free("of query", "of key", "of value")


def _core_backward_fused(allocator: SimulatedAllocator, context: StepContext, prefix: str) -> None:
    shape = context.shape
    inner = shape.inner_bytes
    apart = shape.attention == "sdpa"
    allocator.make({"of q, k and v": 3 * inner if apart else 0})
    if not apart:
        allocator.make({"of qkv": 3 * inner})
        allocator.brief(context.inside(shape.row_statistic_bytes))
    allocator.free("of context", *(f"{prefix}{name}" for name in ("context", "log-sum-exp", "q, k, v")))
    if apart:
        allocator.make({"of qkv": 3 * inner})
        allocator.free("of q, k and v")
