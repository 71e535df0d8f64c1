"""What each operator of torch allows: whether it may run again in backward, what it writes, what it draws."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from megaselect.compatibility import written_arguments

# Products of matrices, by the names of their operators: most of a step's arithmetic.
PRODUCTS = frozenset(
    [
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "addbmm",
        "linear",
        "matmul",
        "mv",
        "addmv",
        "dot",
        "convolution",
        "_convolution",
        "_grouped_mm",
        "_scaled_mm",
        "_scaled_grouped_mm",
        "mkldnn_linear",
        "mkldnn_convolution",
        "lstm",
        "gru",
        "quantized_lstm",
        "_cdist_forward",
    ]
)
# The two products of attention where its scores are in memory, and the operators that do all of it.
SCORES = frozenset(["bmm", "baddbmm"])
ATTENTION = frozenset(
    [
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_flash_attention_forward",
        "_efficient_attention_forward",
        "_scaled_dot_product_fused_attention_overrideable",
        "fused_attention",
    ]
)
# Dear for what they are, dependent on the order of threads or on whether gradients are on, written into more than
# their schemas say, or read by Python: their results are saved.
NEVER = frozenset(
    [
        "sort",
        "topk",
        "item",
        "_local_scalar_dense",
        "nonzero",
        "unique",
        "unique_dim",
        "_unique2",
        "unique_consecutive",
        "cumsum",
        "cumprod",
        "index_add",
        "index_add_",
        "scatter_add",
        "scatter_add_",
        "scatter_reduce",
        "index_put",
        "index_put_",
        "_index_put_impl_",
        "histc",
        "bincount",
        "masked_select",
        "embedding_bag",
        "_embedding_bag",
        "multinomial",
        "linalg_qr",
        "linalg_svd",
        "_linalg_svd",
        "linalg_eigh",
        "_fft_r2c",
        "_fft_c2r",
        "_fft_c2c",
        "set_",
        "resize_",
        "resize_as_",
        "copy_to",
        "mkldnn_rnn_layer",
        "_cudnn_rnn",
        "miopen_rnn",
        "batch_norm_gather_stats",
        "batch_norm_gather_stats_with_counts",
        "batch_norm_update_stats",
    ]
)
# In training they update their running statistics, of which their schemas say nothing and which they do not read; else
# they read them, as some later pass may have left them. The place of the two arguments, and of "training".
BATCH_NORMS = frozenset(["native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"])
STATISTICS, TRAINING = slice(3, 5), 5
# They read the shape of their first argument and not its values.
SHAPE_ONLY = frozenset(
    [
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty_strided",
    ]
)
# Their results are numbers of Python's.
READS_VALUES = frozenset(["item", "_local_scalar_dense"])
# Calls that give a tensor's memory to others, who may write into it unseen.
ESCAPES = frozenset(
    [
        torch.Tensor.numpy,
        torch.Tensor.__array__,
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
    ]
)
# They write random numbers over all of their first argument and read nothing of it.
DRAWS = frozenset(["bernoulli_", "uniform_", "normal_", "exponential_"])
# Their results are not what they made: somebody writes into these, perhaps past the dispatcher.
ALLOCATIONS = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
_ALIASES = frozenset(["detach", "_unsafe_view", "alias", "lift_fresh", "_reshape_alias"])
_OWN = "megaselect"  # our own operators are functions of their arguments
_OUT = -1


class Operator(NamedTuple):
    """name: without namespace and overload. written: positions of arguments that it writes, (-1,) for out= forms."""

    name: str
    is_view: bool
    written: tuple[int, ...]
    is_random: bool
    may_run_again: bool

    @property
    def writes_elsewhere(self) -> bool:
        """Whether it writes into tensors in ways that are not followed."""
        return self.written == (_OUT,)


@functools.cache
def operator(func: Any) -> Operator:
    """What is known of an operator's overload. Unknown namespaces run once: their results are saved."""
    name = func.overloadpacket.__name__
    written = written_arguments(func)
    is_known = func.namespace == "aten" or (func.namespace == _OWN and not written)
    is_steady = torch.Tag.nondeterministic_bitwise not in func.tags and torch.Tag.dynamic_output_shape not in func.tags
    return Operator(
        name=name,
        is_view=bool(func.is_view) or name in _ALIASES,
        written=written,
        is_random=torch.Tag.nondeterministic_seeded in func.tags,
        may_run_again=is_known and is_steady and name not in NEVER and written != (_OUT,),
    )
