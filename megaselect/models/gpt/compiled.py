"""Layers under torch.compile, one graph a layer, with the same storage as without it.

A compiler sees through a checkpointed region: what backward would make again it merges with what forward made, and
keeps that. So softmax, dropout, layernorm and gelu are ops that it cannot see into, and what selective recomputes is
said by a policy of torch's selective checkpoint, op by op: layernorm, gelu and (core_attn) the scores are run again,
every other result that backward needs is kept. An op is kept or run again whole, hence two differences in
bytes from the same setting without compiling: a recomputed layernorm keeps no statistics (8sb less each), and core_attn
keeps what the context's op returns, its row statistics too (8asb more). Chunks of `full` stay outside: they run
compiled layers again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from megaselect.compatibility import quieten_region_warnings, share_compiled_graphs
from megaselect.models.gpt.block import Block
from megaselect.models.gpt.layer_policy import give_policy
from megaselect.recomputation.policy import LayerPolicy
from megaselect.recompute_modules import RECOMPUTE_MODULES, declared

GRAPHS_PER_FUNCTION = 64  # layers share graphs; other batch sizes, dtypes and plans of a process add to them


def compile_layer(block: Block, policy: LayerPolicy, modules: frozenset[str]) -> None:
    """Have the block run compiled where it trains. policy: its flags, without regions; modules: what it recomputes."""
    # Layers differ in their dropout sites alone, integers on modules: as symbols they let all layers share a graph.
    share_compiled_graphs(GRAPHS_PER_FUNCTION)
    give_policy(block, policy)
    used = declared(modules, getattr(block.attention.core, "kind", "somebody else's"))
    recomputed = frozenset(module.name for module in used if module.compiled_op)
    block.__dict__["forward"] = _CompiledForward(block, _compiled(recomputed))  # before the class's


def uncompile_layer(block: Block) -> None:
    """Undo compile_layer."""
    block.__dict__.pop("forward", None)


def is_compiled(module: nn.Module) -> bool:
    """Whether compile_layer has been at the module."""
    return isinstance(module.__dict__.get("forward"), _CompiledForward)


class _CompiledForward:
    """Runs the graph in training; evaluation and sampling, with a shape for every prompt, run as they are."""

    def __init__(self, block: Block, compiled: Callable[..., Tensor]) -> None:
        self.block, self.compiled = block, compiled

    def __call__(self, x: Tensor, sample_index: Tensor) -> Tensor:
        run = self.compiled if torch.is_grad_enabled() and self.block.training else Block.forward
        return run(self.block, x, sample_index)


@functools.cache
def _compiled(modules: frozenset[str]) -> Callable[..., Tensor]:
    """Block.forward compiled, recomputing `modules`; one for all blocks, so that they share its graphs."""
    if not modules:
        return torch.compile(_forward, fullgraph=True)
    recomputed = {_operator(op) for name in modules if (op := RECOMPUTE_MODULES[name].compiled_op)}
    quieten_region_warnings()  # ours write nothing in place

    def policy(_: Any, op: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_RECOMPUTE if op in recomputed else CheckpointPolicy.MUST_SAVE

    def selective_forward(block: Block, x: Tensor, sample_index: Tensor) -> Tensor:
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(_forward, block, x, sample_index, use_reentrant=False, context_fn=contexts)

    # Graphs are cached by code object, and a policy is not among what they are checked against: without a code object
    # of its own, one setting would run the graph of another.
    selective_forward.__code__ = selective_forward.__code__.replace(co_name=f"recompute_{'_'.join(sorted(modules))}")
    return torch.compile(selective_forward, fullgraph=True)


def _operator(name: str) -> Any:
    """The operator `namespace.name`."""
    namespace, _, operator = name.partition(".")
    return getattr(getattr(torch.ops, namespace), operator).default


def _forward(block: Block, x: Tensor, sample_index: Tensor) -> Tensor:
    return Block.forward(block, x, sample_index)
