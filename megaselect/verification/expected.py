"""What a setting must run again in backward, as counts: operators, and softmax and masks inside our backward operators.

Softmax and dropout masks are made again inside our own backward operators, where no operator call shows it. What shows
it is what these were handed: no probs and no mask, so that there is nothing to use but what they make themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from megaselect.ledger.rerun import operator_name
from megaselect.prediction.saved_bytes import LayerShape
from megaselect.recomputation.plan import RecomputePlan
from megaselect.recompute_modules import ATTENTION_MASK, HIDDEN_MASKS, SOFTMAX, declared

OURS = "megaselect."
SDPA = "aten._scaled_dot_product"  # the rest of the name depends on device and dtype

# Counted in what backward operators were handed.
SOFTMAX_INSIDE = f"{SOFTMAX} inside backward"
ATTENTION_MASK_INSIDE = f"{ATTENTION_MASK} inside backward"
HIDDEN_MASK_INSIDE = f"{HIDDEN_MASKS} inside backward"

CORE_ATTENTION = {
    "unfused": {"aten.baddbmm": 1, OURS + "softmax_dropout_value": 1},
    "fused": {OURS + "fused_attention": 1},
    "sdpa": {SDPA: 1},
}
REST_OF_LAYER = {
    OURS + "layer_norm": 1,  # the first; the second is in an operator with the dropout before it
    OURS + "bias_dropout_residual_layer_norm": 1,
    OURS + "bias_dropout_residual": 1,
    OURS + "gelu": 1,
    "aten.addmm": 2,  # qkv and fc1, which have biases
    "aten.mm": 2,  # projection and fc2
}
HIDDEN_BACKWARD = (OURS + "bias_dropout_residual_backward", OURS + "bias_dropout_residual_layer_norm_backward")


def expected_counts(shape: LayerShape, plan: RecomputePlan) -> Counter[str]:
    """Name -> how often a micro-batch makes it again in backward under the plan."""
    counts: Counter[str] = Counter()
    unfused = shape.attention == "unfused"
    for modules, whole in _layers(plan):
        counts.update(_operators(shape, modules, whole))
        made = {part for module in declared(modules, shape.attention) for part in module.made_inside}
        counts[SOFTMAX_INSIDE] += unfused and (whole or SOFTMAX in made)
        counts[ATTENTION_MASK_INSIDE] += unfused and shape.attention_dropout and (whole or ATTENTION_MASK in made)
        counts[HIDDEN_MASK_INSIDE] += 2 * (shape.hidden_dropout and (whole or HIDDEN_MASKS in made))
    counts[HIDDEN_MASK_INSIDE] += shape.hidden_dropout and plan.recompute_embedding_mask
    return +counts


def _layers(plan: RecomputePlan) -> Iterator[tuple[frozenset[str], bool]]:
    """(modules that selective recomputes, whether the layer runs again as a whole)"""
    for chunk in plan.chunks:
        for layer in range(chunk.first, chunk.first + chunk.count):
            yield plan.modules[layer], chunk.checkpointed


def _operators(shape: LayerShape, modules: frozenset[str], whole: bool) -> Counter[str]:
    if whole:
        return Counter(REST_OF_LAYER | CORE_ATTENTION[shape.attention])
    counts: Counter[str] = Counter()
    for module in declared(modules, shape.attention):
        counts.update(module.runs_again)
    return counts


def counted_operators(calls: Counter[str]) -> Counter[str]:
    """Calls under the names that expected_counts uses."""
    counts: Counter[str] = Counter()
    for name, count in calls.items():
        counts[SDPA if name.startswith(SDPA) else name] += count
    return counts


def made_inside(op: Any, arguments: dict[str, Any]) -> Iterator[str]:
    """What a call of one of our backward operators had to make itself. arguments: by the names of its schema."""
    name = operator_name(op)
    if name == OURS + "softmax_dropout_value_backward":
        if arguments["scores"].numel() and not arguments["probs"].numel() and not arguments["dropped"].numel():
            yield SOFTMAX_INSIDE
        if arguments["threshold"] and not arguments["mask"].numel():
            yield ATTENTION_MASK_INSIDE
    elif name in HIDDEN_BACKWARD and arguments["threshold"] and not arguments["mask"].numel():
        yield HIDDEN_MASK_INSIDE


def faults_in(counts: Counter[str], expected: Counter[str]) -> Iterator[str]:
    """A sentence for each count that is not as expected, what is missing first."""
    names = sorted(expected.keys() | (counts.keys() & _KNOWN), key=lambda name: (counts[name] >= expected[name], name))
    for name in names:
        if counts[name] != expected[name]:
            shown = name + "*" if name == SDPA else name
            yield f"{shown} ran again {counts[name]} times in backward, not {expected[name]}"


_KNOWN = {SOFTMAX_INSIDE, ATTENTION_MASK_INSIDE, HIDDEN_MASK_INSIDE, *REST_OF_LAYER} | {
    name for operators in CORE_ATTENTION.values() for name in operators
}
