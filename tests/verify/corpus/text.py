"""Decoders, mixtures of experts, state space models, encoders, and encoders with decoders."""

from __future__ import annotations

from typing import Any

from corpus.architectures import VOCABULARY, Architecture, causal, classified, unpadded

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_attention_heads": 2, "intermediate_size": 32}
GROUPED = SIZES | SPECIAL | HEADS | {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = GROUPED | {"output_router_logits": True, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32} | SPECIAL
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    **{f"{side}_{size}": n for side in ("encoder", "decoder") for size, n in (("layers", 2), ("ffn_dim", 32))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
} | SPECIAL
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5 |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
STATE_SPACE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8} | SPECIAL


def _decoder(name: str, base: str, sizes: dict[str, Any], kind: str = "decoder", model: str = "") -> Architecture:
    return Architecture(name, kind, f"{base}Config", model or f"{base}ForCausalLM", causal, sizes)


def _encoder(name: str, base: str, **sizes: Any) -> Architecture:
    sizes = SIZES | HEADS | {"pad_token_id": 0} | sizes
    return Architecture(name, "encoder", f"{base}Config", f"{base}ForSequenceClassification", classified, sizes)


def _both(name: str, base: str, model: str, sizes: dict[str, Any]) -> Architecture:
    return Architecture(name, "encoder and decoder", f"{base}Config", model, causal, sizes)


ARCHITECTURES = (
    _decoder("gpt2", "GPT2", GPT, model="GPT2LMHeadModel"),
    _decoder(
        "gpt_neo",
        "GPTNeo",
        SIZES
        | SPECIAL
        | {"num_layers": 2, "num_heads": 2, "window_size": 4}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    _decoder("gpt_neox", "GPTNeoX", SIZES | SPECIAL | HEADS),
    _decoder("gptj", "GPTJ", GPT | {"rotary_dim": 4}),
    _decoder("opt", "OPT", SIZES | SPECIAL | {"num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    _decoder("bloom", "Bloom", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2} | SPECIAL),
    _decoder("falcon", "Falcon", SIZES | SPECIAL | HEADS | {"num_kv_heads": 1}),
    _decoder(
        "xglm",
        "XGLM",
        {"vocab_size": VOCABULARY, "d_model": 16, "ffn_dim": 32, "num_layers": 2}
        | {"attention_heads": 2, "max_position_embeddings": 32}
        | SPECIAL,
    ),
    _decoder("biogpt", "BioGpt", SIZES | SPECIAL | HEADS),
    _decoder("llama", "Llama", GROUPED),
    _decoder("mistral", "Mistral", GROUPED | {"sliding_window": 4}),
    _decoder("qwen2", "Qwen2", GROUPED),
    _decoder("qwen3", "Qwen3", GROUPED),
    _decoder("gemma2", "Gemma2", GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    _decoder("gemma3", "Gemma3Text", GROUPED | {"sliding_window": 4}, model="Gemma3ForCausalLM"),
    _decoder("phi3", "Phi3", GROUPED),
    _decoder("olmo2", "Olmo2", GROUPED),
    _decoder("mixtral", "Mixtral", EXPERTS | {"num_local_experts": 4}, "mixture of experts"),
    _decoder("qwen3_moe", "Qwen3Moe", EXPERTS | {"num_experts": 4}, "mixture of experts"),
    _decoder("gpt_oss", "GptOss", EXPERTS | {"num_local_experts": 4, "sliding_window": 4}, "mixture of experts"),
    Architecture(
        "switch_transformers",
        "mixture of experts",
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        causal,
        T5
        | {"num_decoder_layers": 2, "num_experts": 4, "expert_capacity": 8, "output_router_logits": True}
        | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    Architecture("mamba", "state space", "MambaConfig", "MambaForCausalLM", unpadded, STATE_SPACE),
    Architecture(
        "mamba2",
        "state space",
        "Mamba2Config",
        "Mamba2ForCausalLM",
        unpadded,
        STATE_SPACE | {"num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    ),
    _encoder("bert", "Bert"),
    _encoder("roberta", "Roberta"),
    _encoder("deberta-v2", "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4),
    _encoder("electra", "Electra", embedding_size=8),
    Architecture(
        "distilbert",
        "encoder",
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        classified,
        {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    ),
    _encoder("modernbert", "ModernBert", local_attention=4, cls_token_id=1, sep_token_id=2, reference_compile=False),
    _both("t5", "T5", "T5ForConditionalGeneration", T5),
    _both("bart", "Bart", "BartForConditionalGeneration", BART),
    _both("marian", "Marian", "MarianMTModel", BART),
    _both("pegasus", "Pegasus", "PegasusForConditionalGeneration", BART),
)
