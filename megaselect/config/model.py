"""Shape of the model: section `model`, and its rules."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from megaselect.config.section import Section
from megaselect.config.setting_error import SettingError

VOCABULARY_MULTIPLE = 128
# Dropout sites number the heads of a layer from 0 and the layer's other sites from 4000 (docs/dropout-mask.md).
MAX_HEADS = 4000
# Plans list the layers one by one. The deepest models have hundreds.
MAX_LAYERS = 100_000

# Settings of the model that follow others, or the data, where they are left out. After validation they have a value.
FOLLOWING = ("ffn_hidden_size", "vocab_size", "attention_dropout_p", "hidden_dropout_p")
FOLLOWS: Any = None


def _none_or_valid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return None if value is None else validate(value)


MAY_FOLLOW = WrapValidator(_none_or_valid)


class ModelConfig(Section):
    """Shape of the GPT model."""

    num_layers: int = Field(ge=1, le=MAX_LAYERS, description="transformer layers")
    hidden_size: int = Field(ge=1, description="width of the residual stream")
    num_attention_heads: int = Field(ge=1, le=MAX_HEADS, description="heads; must divide the hidden size")
    ffn_hidden_size: Annotated[int, Field(ge=1), MAY_FOLLOW] = Field(
        FOLLOWS, description="width inside the MLP; none: 4 x hidden size"
    )
    seq_length: int = Field(ge=1, description="tokens per training sample")
    vocab_size: Annotated[int, Field(ge=1), MAY_FOLLOW] = Field(
        FOLLOWS, description="rows of the embedding table; none: as the data's tokenizer"
    )
    dropout_p: float = Field(0.1, description="dropout probability, in steps of 1/256")
    attention_dropout_p: Annotated[float, MAY_FOLLOW] = Field(
        FOLLOWS, description="dropout after softmax; none: the same as dropout-p"
    )
    hidden_dropout_p: Annotated[float, MAY_FOLLOW] = Field(
        FOLLOWS, description="dropout elsewhere; none: the same as dropout-p"
    )
    attention: Literal["unfused", "fused", "sdpa"] = Field(
        "unfused",
        description="how core attention is computed: unfused keeps scores or probs; fused never writes them, with the "
        "same dropout masks; sdpa is torch's, without dropout",
    )
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    layernorm_epsilon: float = Field(1e-5, gt=0, description="added to the variance in layernorm")
    kernel_backend: Literal["auto", "triton", "numba", "torch"] = Field(
        "auto", description="who runs the fused ops; auto: triton on a GPU, numba (else torch) on a CPU"
    )

    @property
    def padded_vocab_size(self) -> int:
        """The next multiple of 128, which matrix products want."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @model_validator(mode="after")
    def _fill_and_check(self) -> Self:
        check_model(self)
        filled = {
            "ffn_hidden_size": 4 * self.hidden_size,
            "attention_dropout_p": self.dropout_p,
            "hidden_dropout_p": self.dropout_p,
        }
        for name, value in filled.items():
            if getattr(self, name) is None:
                self.fill(name, value)
        return self

    def fill(self, name: str, value: float) -> None:
        """Set a field that was left out, without counting it as set.

        to_dict gives None again, so that a later override of what it follows, such as hidden_size, still reaches it.
        """
        self.__dict__[name] = value
        self.model_fields_set.discard(name)


def check_model(model: ModelConfig) -> None:
    """Heads divide the hidden size; each dropout probability is one that the masks can have."""
    heads, hidden = model.num_attention_heads, model.hidden_size
    if hidden % heads:
        divisors = [n for n in range(1, min(hidden, MAX_HEADS) + 1) if hidden % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - heads))
        raise SettingError(
            f"model.num_attention_heads ({heads}) must divide model.hidden_size ({hidden}); "
            f"use {nearest} heads, or a hidden size such as {max(1, hidden // heads) * heads}",
            "model.num_attention_heads",
            "model.hidden_size",
        )
    for name in ("dropout_p", "attention_dropout_p", "hidden_dropout_p"):
        probability = getattr(model, name)
        if probability is not None:
            _check_dropout(f"model.{name}", probability)
    attention_dropout_p = model.dropout_p if model.attention_dropout_p is None else model.attention_dropout_p
    if model.attention == "sdpa" and attention_dropout_p > 0:
        raise SettingError(
            f"model.attention sdpa drops nothing, but the attention's dropout is {attention_dropout_p}: "
            "use --attention fused, or --model.attention-dropout-p 0",
            "model.attention",
            "model.attention_dropout_p",
            "model.dropout_p",
        )


def _check_dropout(name: str, probability: float) -> None:
    """Masks drop with probability t/256, t = floor(256 p + 0.5): the same t as kernels/dropout_mask.py."""
    if not 0 <= probability < 1:
        raise SettingError(f"{name} = {probability} is outside [0, 1); use a value such as 0.1, or 0 for none", name)
    threshold = math.floor(256 * probability + 0.5)
    if threshold == 0 and probability > 0:
        raise SettingError(f"{name} = {probability} rounds to 0/256 and drops nothing; use 0, or 0.002 or more", name)
    if threshold == 256:
        raise SettingError(f"{name} = {probability} rounds to 256/256 and drops everything; use 0.998 or less", name)
