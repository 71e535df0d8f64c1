"""Others' GPTs with the same shapes, number of weights, data and optimizer: plain PyTorch, Hugging Face, Megatron-LM.

A maker raises ImportError where its package is missing or cannot run on the device: its row is then `skipped`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.families import Family, RandomBatch, draw, fill
from benchmarks.plain_gpt import PlainGPT, call, checkpointed, compiled, saving_products
from megaselect.config import Config
from megaselect.training.optimizer import MixedPrecisionAdamW

BUDGET = 0.5

MakeFamily = Callable[[], Family]


def baseline_makers(
    names: Iterable[str], config: Config, device: torch.device, dtype: torch.dtype
) -> list[tuple[str, MakeFamily]]:
    """(name, maker) of settings.BASELINES by name."""
    makers = {"plain": plain_family, "plain-compiled": compiled_family}
    makers |= {"huggingface": hugging_face_family, "megatron": megatron_family}
    return [(name, functools.partial(makers[name], config, device, dtype)) for name in names]


def plain_family(config: Config, device: torch.device, dtype: torch.dtype) -> Family:
    """Matrix products or SDPA, with dropout; checkpoints of torch.utils.checkpoint around each layer, or selective."""
    return _plain(
        "plain",
        config,
        device,
        dtype,
        {
            "plain eager": (False, call),
            "plain eager, checkpoint": (False, checkpointed),
            "plain eager, SAC": (False, saving_products),
            "plain sdpa": (True, call),
            "plain sdpa, checkpoint": (True, checkpointed),
            "plain sdpa, SAC": (True, saving_products),
        },
    )


def plain_sdpa_family(config: Config, device: torch.device, dtype: torch.dtype) -> Family:
    """The plain GPT's fastest way without compiling."""
    return _plain("plain", config, device, dtype, {"plain sdpa": (True, call)})


def compiled_family(config: Config, device: torch.device, dtype: torch.dtype) -> Family:
    """The plain GPT with compiled layers, with and without a memory budget."""
    return _plain(
        "plain-compiled",
        config,
        device,
        dtype,
        {
            "plain eager, compiled": (False, compiled(1.0)),
            f"plain eager, compiled, {BUDGET:g}": (False, compiled(BUDGET)),
            "plain sdpa, compiled": (True, compiled(1.0)),
            f"plain sdpa, compiled, {BUDGET:g}": (True, compiled(BUDGET)),
        },
    )


def _plain(
    name: str,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    ways: dict[str, tuple[bool, Callable[[nn.Module, Tensor, Tensor], Tensor]]],
) -> Family:
    with torch.device("meta"):
        model = PlainGPT(config.model)
    fill(model, config, device, dtype)

    def preparing(sdpa: bool, run_layer: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def prepare() -> None:
            model.use_sdpa(sdpa)
            model.run_layer = run_layer

        return prepare

    variants = {label: preparing(*way) for label, way in ways.items()}
    return _family(name, model, config, variants, lambda batch: model(batch.tokens, batch.targets))


def hugging_face_family(config: Config, device: torch.device, dtype: torch.dtype) -> Family:
    """transformers' GPT-2, eager and sdpa, with its gradient checkpointing on and off. The loss is ours in form."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = config.model
    settings = GPT2Config(
        vocab_size=shape.padded_vocab_size,
        n_positions=shape.seq_length,
        n_embd=shape.hidden_size,
        n_layer=shape.num_layers,
        n_head=shape.num_attention_heads,
        n_inner=shape.ffn_hidden_size,
        resid_pdrop=shape.hidden_dropout_p,
        embd_pdrop=shape.hidden_dropout_p,
        attn_pdrop=shape.attention_dropout_p,
        layer_norm_epsilon=shape.layernorm_epsilon,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):  # not the meta device, which would lose its buffers
        model = GPT2LMHeadModel(settings)
    model.to(dtype).train()
    draw(model, config, device)

    def preparing(attention: str, checkpointing: bool) -> Callable[[], None]:
        def prepare() -> None:
            if hasattr(model, "set_attn_implementation"):
                model.set_attn_implementation(attention)
            else:  # transformers before 4.54 reads this at every call
                model.config._attn_implementation = attention
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()

        return prepare

    variants = {
        f"HF {attention}{', checkpoint' if checkpointing else ''}": preparing(attention, checkpointing)
        for attention in ("eager", "sdpa")
        for checkpointing in (False, True)
    }
    return _family(
        "huggingface",
        model,
        config,
        variants,
        lambda batch: _cross_entropy(model(batch.tokens, use_cache=False).logits, batch),
    )


def megatron_family(config: Config, device: torch.device, dtype: torch.dtype) -> Family:
    """megatron-core's GPT of its local layers (no Transformer Engine), with its recomputation."""
    from benchmarks.baseline_megatron import make_model

    model, variants, loss = make_model(config, device, dtype)
    return _family("megatron", model, config, variants, loss)


def _cross_entropy(logits: Tensor, batch: RandomBatch) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())


def _family(
    name: str,
    model: nn.Module,
    config: Config,
    variants: dict[str, Callable[[], None]],
    loss: Callable[[RandomBatch], Tensor],
) -> Family:
    return Family(name, model, MixedPrecisionAdamW(model, config.training), variants, loss, config.training.lr)
