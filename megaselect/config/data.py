"""Where the tokens come from: section `data`, and its rules."""

from typing import Self

from pydantic import Field, model_validator

from megaselect.config.blend import BlendWords, parse_blend
from megaselect.config.section import Section
from megaselect.config.setting_error import SettingError, located

# The default of data.valid_fraction. Another one is the user's wish, and is not to be ignored without a word.
VALID_FRACTION = 0.05


class DataConfig(Section):
    """Where the tokens come from."""

    prefix: str | None = Field(None, description="indexed dataset to train on; none: the default corpus")
    blend: BlendWords = Field(
        (), description="weights and indexed datasets to mix, such as 0.7 data/a 0.3 data/b, in place of a prefix"
    )
    valid_prefix: str | None = Field(None, description="indexed dataset to evaluate on; none: split off")
    test_prefix: str | None = Field(
        None, description="indexed dataset to evaluate on once, at the end; none: split off"
    )
    tokenizer: str | None = Field(None, description="tokenizer model file; none: the dataset's own")
    valid_fraction: float = Field(VALID_FRACTION, ge=0, lt=1, description="share split off for evaluation")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="share that is split off for the test at the end")
    check: bool = Field(False, description="read every token before training: ids in range, documents whole")
    prefetch: int = Field(2, ge=0, description="batches that a thread reads ahead of the step; 0: no thread")
    cache_dir: str | None = Field(
        None, description="directory of prepared data; none: $MEGASELECT_CACHE or ~/.cache/megaselect"
    )
    vocab_size: int = Field(4096, ge=1, description="size of the default corpus's tokenizer")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_data(self)
        return self


def check_data(data: DataConfig) -> None:
    """The blend is pairs of weight and dataset; no split is asked for in two ways, and none would be ignored."""
    located(lambda: parse_blend(data.blend), "data.blend")
    if data.blend and data.prefix is not None:
        raise SettingError(
            f"data.blend and data.prefix ({data.prefix}) both say what to train on; remove one of them",
            "data.blend",
            "data.prefix",
        )
    if data.valid_fraction != VALID_FRACTION:
        if data.valid_prefix is not None:
            raise SettingError(
                f"data.valid_fraction ({data.valid_fraction}) has no effect beside data.valid_prefix "
                f"({data.valid_prefix}); remove one of them",
                "data.valid_fraction",
                "data.valid_prefix",
            )
        if data.prefix is None and not data.blend:
            raise SettingError(
                f"data.valid_fraction ({data.valid_fraction}) has no effect on the default corpus, which brings its "
                "own validation split; remove it, or set data.valid_prefix, or data.prefix to a dataset of your own",
                "data.valid_fraction",
                "data.prefix",
            )
    _check_test_split(data)


def _check_test_split(data: DataConfig) -> None:
    names = ("data.test_fraction", "data.test_prefix", "data.valid_fraction")
    if data.test_fraction and data.test_prefix is not None:
        raise SettingError(
            f"data.test_fraction ({data.test_fraction}) has no effect beside data.test_prefix ({data.test_prefix}); "
            "remove one of them",
            *names,
        )
    valid_fraction = 0.0 if data.valid_prefix is not None else data.valid_fraction
    if valid_fraction + data.test_fraction >= 1:
        raise SettingError(
            f"data.valid_fraction ({valid_fraction}) and data.test_fraction ({data.test_fraction}) leave nothing to "
            "train on; lower them",
            *names,
        )
