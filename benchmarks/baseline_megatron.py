"""megatron-core's GPT with its local layers: no Transformer Engine, no Apex, one rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.families import RandomBatch, draw
from megaselect.config import Config


def make_model(
    config: Config, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Callable[[], None]], Callable[[RandomBatch], Tensor]]:
    """(model, variants, loss). Raises ImportError without the package, or without a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each part of Apex and Transformer Engine that is not there
        import megatron.core  # noqa: F401
    if device.type != "cuda":
        raise ImportError("megatron-core draws dropout from CUDA's random state: its local layers need a GPU")
    _initialise(config.training.seed)
    return _make(config, device, dtype)


def _initialise(seed: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    if not dist.is_initialized():
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(seed)


def _make(
    config: Config, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Callable[[], None]], Callable[[RandomBatch], Tensor]]:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    shape = config.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = TransformerConfig(
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            ffn_hidden_size=shape.ffn_hidden_size,
            num_attention_heads=shape.num_attention_heads,
            hidden_dropout=shape.hidden_dropout_p,
            attention_dropout=shape.attention_dropout_p,
            layernorm_epsilon=shape.layernorm_epsilon,
            params_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            gradient_accumulation_fusion=False,  # from here on: what needs Apex or its own CUDA extensions
            masked_softmax_fusion=False,
            persist_layer_norm=False,
        )
        model = GPTModel(
            settings,
            get_gpt_layer_local_spec(),
            vocab_size=shape.padded_vocab_size,
            max_sequence_length=shape.seq_length,
            position_embedding_type="learned_absolute",
            share_embeddings_and_output_weights=True,
        )
    model.to(device=device, dtype=dtype)
    draw(model, config, device)
    future = torch.ones(shape.seq_length, shape.seq_length, dtype=torch.bool, device=device).triu_(1)[None, None]
    positions = torch.arange(shape.seq_length, device=device)[None]

    def loss(batch: RandomBatch) -> Tensor:
        return model(batch.tokens, positions.expand_as(batch.tokens), future, labels=batch.targets).mean()

    return model, _variants(model, settings), loss


def _variants(model: nn.Module, settings: object) -> dict[str, Callable[[], None]]:
    """Both switches are read at run time, from the config and from each attention module."""

    def preparing(granularity: str | None) -> Callable[[], None]:
        def prepare() -> None:
            settings.recompute_granularity = granularity
            settings.recompute_method = "uniform" if granularity == "full" else None
            settings.recompute_num_layers = 1 if granularity == "full" else None
            for layer in model.decoder.layers:
                layer.self_attention.checkpoint_core_attention = granularity == "selective"

        return prepare

    names = {"none": None, "selective": "selective", "full": "full"}
    return {f"Megatron local {name}": preparing(granularity) for name, granularity in names.items()}
