"""Models of pictures and of sound."""

from __future__ import annotations

from typing import Any

from corpus.architectures import (
    VOCABULARY,
    Architecture,
    image,
    masked_image,
    spectrogram,
    spoken,
    waveform,
)

PATCHES = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "patch_size": 2}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
SOUND = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 4],
    "conv_stride": [10, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_length": 2,
    "classifier_proj_size": 8,
    "pad_token_id": 0,
}
WHISPER = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "num_mel_bins": 8,
    "max_source_positions": 8,
    "max_target_positions": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


def _vision(name: str, base: str, sizes: dict[str, Any]) -> Architecture:
    return Architecture(name, "vision", f"{base}Config", f"{base}ForImageClassification", image, sizes)


ARCHITECTURES = (
    _vision("vit", "ViT", PATCHES | {"intermediate_size": 32}),
    Architecture(
        "vit_mae",
        "vision",
        "ViTMAEConfig",
        "ViTMAEForPreTraining",
        masked_image,
        PATCHES
        | {"intermediate_size": 32, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2}
        | {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32},
    ),
    _vision("dinov2", "Dinov2", PATCHES),
    _vision("swin", "Swin", SWIN),
    _vision("convnext", "ConvNext", STAGES),
    _vision("convnextv2", "ConvNextV2", STAGES),
    Architecture("whisper", "speech", "WhisperConfig", "WhisperForConditionalGeneration", spectrogram, WHISPER),
    Architecture("wav2vec2", "speech", "Wav2Vec2Config", "Wav2Vec2ForCTC", spoken, SOUND),
    Architecture("hubert", "speech", "HubertConfig", "HubertForSequenceClassification", waveform, SOUND),
    Architecture("wavlm", "speech", "WavLMConfig", "WavLMForSequenceClassification", waveform, SOUND),
)
