"""Architectures of Hugging Face, small and with random weights, dropout on wherever they have it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: a config's values are all that a model here needs

import torch
import transformers
from torch import nn
from transformers import AutoConfig

# On a CPU the random state that a dropout mask is made again of has 5,056 bytes: smaller models would save their masks,
# and prove nothing about random states.
BATCH, LENGTH, WIDTH, VOCABULARY, LAYERS, P = 4, 32, 64, 64, 2, 0.1

# Values by the names that most configs give them; a config keeps what it does not know as an attribute.
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "use_cache": False}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SMALL = (
    SIZES
    | HEADS
    | {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "max_position_embeddings": 64}
    | {"attention_dropout": P}
)
HIDDEN = {"hidden_dropout": P, "hidden_dropout_prob": P, "attention_probs_dropout_prob": P}
RESIDUAL = {"resid_pdrop": P, "embd_pdrop": P, "attn_pdrop": P}
GPT = SIZES | RESIDUAL | {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 4, "n_positions": 64}
FALCON = {name: value for name, value in SMALL.items() if name != "head_dim"}  # a property of its own
DISTIL = SIZES | {
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": 4,
    "hidden_dim": 2 * WIDTH,
    "max_position_embeddings": 64,
}
NEO = {"num_layers": LAYERS, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
NEO |= {"embed_dropout": P, "resid_dropout": P}
T5 = SIZES | {
    "d_model": WIDTH,
    "d_kv": 16,
    "d_ff": 2 * WIDTH,
    "num_layers": LAYERS,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART = SIZES | {"d_model": WIDTH, "decoder_start_token_id": 0, "max_position_embeddings": 64}
BART |= {"encoder_layers": LAYERS, "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * WIDTH}
BART |= {"decoder_layers": LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 2 * WIDTH}
BART |= {"dropout": P, "attention_dropout": P, "activation_dropout": P}
WHISPER = BART | {"num_mel_bins": 8, "max_source_positions": LENGTH, "max_target_positions": 64}
LAYERDROP = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
IMAGE = {"image_size": 24, "patch_size": 4}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = LATENT | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
DEEPSEEK |= {"num_key_value_heads": 4, "head_dim": 8}
NEXT = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
NEXT |= {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 32}
MAMBA2 = {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8}
CONVNEXT = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": 24, "patch_size": 2}

MASKED, SEQUENCES, SPOKEN, IMAGES, BACKBONE = (
    f"AutoModel{name}" for name in ("ForMaskedLM", "ForSeq2SeqLM", "ForSpeechSeq2Seq", "ForImageClassification", "")
)

# A padding mask of ones is left out after a look at its values: _ignore_bidirectional_mask_sdpa. A bool for each token.
PADDING = {"attention": BATCH * LENGTH, "full": BATCH * LENGTH}
GROUPED = "torch's grouped product takes fp32 with values, and bfloat16 alone without"
READS = "layerdrop reads the number that it draws"
CHOICE = "each expert runs on as many tokens as the router sends it"


def tokens() -> torch.Tensor:
    """Of a batch: (BATCH, LENGTH) int64."""
    return torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


def normal(*shape: int) -> torch.Tensor:
    """(BATCH, *shape) float32."""
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))


def text() -> dict[str, Any]:
    """Tokens, and the same to be told."""
    return {"input_ids": tokens(), "labels": tokens()}


def text_alone() -> dict[str, Any]:
    """Tokens, for a model without a head."""
    return {"input_ids": tokens()}


def images() -> dict[str, Any]:
    """Images and their classes."""
    return {"pixel_values": normal(3, 24, 24), "labels": torch.arange(BATCH) % 2}


def images_alone() -> dict[str, Any]:
    """Images, for a model without a head."""
    return {"pixel_values": normal(3, 24, 24)}


def speech() -> dict[str, Any]:
    """Spectrograms and what is said in them."""
    return {"input_features": normal(8, 2 * LENGTH), "labels": tokens()}


@dataclass(frozen=True)
class Architecture:
    """config: values, as SMALL. head: the class of transformers that makes the model. options: more for that class.

    of: the model type of transformers, where it is not the name. has_masks: whether it has dropout
    whose masks are larger than a random state.
    differs: why forward passes are not alike from step to step. needs_values: why a run without values is refused.
    predicted_more: setting -> bytes that a fake run saves and a real one does not. Empty: none of these.
    """

    config: dict[str, Any]
    head: str = "AutoModelForCausalLM"
    batch: Callable[[], dict[str, Any]] = text
    of: str = ""
    options: dict[str, str] = field(default_factory=dict)
    has_masks: bool = True
    differs: str = ""
    needs_values: str = ""
    predicted_more: dict[str, int] = field(default_factory=dict)


def _causal(*configs: dict[str, Any], **options: Any) -> Architecture:
    config = {name: value for part in (SMALL, *configs) for name, value in part.items()}
    return Architecture(config, **options)


ALL_ARCHITECTURES = {
    "gpt2": Architecture(GPT),
    "opt": Architecture(SMALL | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH, "dropout": P}),
    "bloom": Architecture(GPT | HIDDEN | {"hidden_size": WIDTH, "attention_dropout": P}),
    "falcon": Architecture(FALCON | HIDDEN),
    "llama": _causal(),
    "qwen3": _causal(),
    "gemma3_text": _causal({"sliding_window": 8}),
    "mixtral": _causal(EXPERTS, {"router_jitter_noise": 0.01}, needs_values=GROUPED),
    "mixtral, eager": _causal(
        EXPERTS, of="mixtral", options={"experts_implementation": "eager"}, differs=CHOICE, needs_values=CHOICE
    ),
    "qwen3_moe": _causal(EXPERTS, needs_values=GROUPED),
    "deepseek_v3": _causal(EXPERTS, DEEPSEEK, needs_values=GROUPED),
    "mamba2": Architecture(SMALL | MAMBA2, has_masks=False),
    "bert": Architecture(SMALL | HIDDEN, MASKED),
    "t5": Architecture(T5, SEQUENCES),
    "bart": Architecture(BART, SEQUENCES, predicted_more=PADDING),
    "vit": Architecture(SMALL | IMAGE | HIDDEN, IMAGES, images),
    "siglip_vision_model": Architecture(SMALL | IMAGE, BACKBONE, images_alone),
    "clip_text_model": Architecture(SMALL, BACKBONE, text_alone),
    "whisper, layerdrop": Architecture(
        WHISPER | LAYERDROP, SPOKEN, speech, of="whisper", differs="it leaves layers out by chance", needs_values=READS
    ),
    "whisper": Architecture(WHISPER, SPOKEN, speech),
    "phi3": _causal(RESIDUAL),
    "gpt_neox": _causal(HIDDEN),
    "llama, eager": _causal(of="llama", options={"attn_implementation": "eager"}),
    "roberta": Architecture(SMALL | HIDDEN, MASKED),
    "gptj": Architecture(GPT | {"rotary_dim": 4}),
    "mistral": _causal({"sliding_window": 8}),
    "olmo2": _causal(),
    "starcoder2": _causal({"residual_dropout": P, "embedding_dropout": P}),
    "electra": Architecture(SMALL | HIDDEN, MASKED),
    "gpt_bigcode": Architecture(GPT),
    "gpt_neo": _causal(NEO),
    "qwen2": _causal(),
    "gemma2": _causal({"sliding_window": 8}),
    "phi": _causal(RESIDUAL),
    "granite": _causal(),
    "cohere": _causal(),
    "glm4": _causal(),
    "stablelm": _causal(HIDDEN),
    "olmoe": _causal(EXPERTS, needs_values=GROUPED),
    "gpt_oss": _causal(EXPERTS, needs_values=GROUPED),
    "qwen3_next": _causal(EXPERTS, NEXT, needs_values=GROUPED),
    "mamba": Architecture(SMALL | {"state_size": 8}, has_masks=False),
    "distilbert": Architecture(DISTIL, MASKED),
    "deberta-v2": Architecture(SMALL | HIDDEN | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, MASKED),
    "modernbert": Architecture(SMALL | {"mlp_dropout": P, "embedding_dropout": P}, MASKED),
    "dinov2": Architecture(SMALL | IMAGE | HIDDEN | {"drop_path_rate": P}, IMAGES, images),
    "clip_vision_model": Architecture(SMALL | IMAGE, BACKBONE, images_alone),
    # Its drop path draws a number for each image, and saves them.
    "convnext": Architecture(
        CONVNEXT | {"drop_path_rate": 0.5, "layer_scale_init_value": 1.0}, IMAGES, images, has_masks=False
    ),
}


def build(name: str) -> nn.Module:
    """The model in training, with the same weights each time."""
    made = ALL_ARCHITECTURES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(made.of or name, **made.config)
    return getattr(transformers, made.head).from_config(config, **made.options).train()


def batch_of(name: str) -> dict[str, Any]:
    """What the model is called with."""
    return ALL_ARCHITECTURES[name].batch()


def loss_of(output: Any) -> torch.Tensor:
    """The model's own, or of a model without a head one of its hidden state."""
    return output.loss if "loss" in output else output.last_hidden_state.square().mean()
