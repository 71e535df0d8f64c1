"""What a config's data section comes to: the datasets, their tokenizer, and the vocabulary of the model. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from megaselect.config import Config, DataConfig
from megaselect.config.blend import parse_blend
from megaselect.data.prepare import prepare_default_corpus
from megaselect.data.record import read_record
from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import DataError


@dataclass(frozen=True)
class Chosen:
    """datasets: with their weights. tokenizer: None where there is none beside them and none was named."""

    datasets: list[tuple[Fraction, str]]
    valid_prefix: str | None
    tokenizer: Path | None
    description: str


def choose(data: DataConfig) -> Chosen:
    """The section's dataset or blend, or the default corpus, which is built on first use. Raises DataError."""
    named = Path(data.tokenizer) if data.tokenizer else None
    if data.blend:
        blend = parse_blend(data.blend)
        description = " + ".join(f"{float(weight):g} {prefix}" for weight, prefix in blend)
        return Chosen(blend, data.valid_prefix, named or _common_tokenizer([p for _, p in blend]), description)
    if data.prefix is not None:
        tokenizer = named or _common_tokenizer([data.prefix])
        return Chosen([(Fraction(1), data.prefix)], data.valid_prefix, tokenizer, data.prefix)
    cache = Path(data.cache_dir) if data.cache_dir else None
    paths = prepare_default_corpus(cache, data.vocab_size)
    valid_prefix = data.valid_prefix or str(paths.valid_prefix)
    train = [(Fraction(1), str(paths.train_prefix))]
    return Chosen(train, valid_prefix, named or paths.tokenizer_path, paths.description)


def follow_vocabulary(config: Config) -> tuple[Config, list[str]]:
    """The config with model.vocab_size set to what its data has, where it is not given, and a note where it is larger.

    Reads tokenizers and records, and no tokens. Where files are missing the config stays as it is: who opens the data
    says which. Raises DataError where nothing tells how many ids there are.
    """
    prefixes, named = _prefixes(config.data), config.data.tokenizer
    files = [f"{prefix}.idx" for prefix in prefixes] + ([named] if named else [])
    given = config.model.vocab_size if "vocab_size" in config.model.model_fields_set else None
    if not all(Path(file).is_file() for file in files):
        return config, []
    size, whose = _vocabulary(config.data, prefixes)
    if given is None:
        if size is None:
            raise DataError(
                f"{' and '.join(prefixes)} came without a tokenizer and without a record of one, so that nothing tells "
                "how many ids there are: set model.vocab_size (--model.vocab-size)"
            )
        return Config.from_dict(config.to_dict(), "config", {"model.vocab_size": size}), []
    if size is None or size >= given:
        return config, []
    return config, [
        f"note: model.vocab_size {given} is more than the {size} pieces of {whose}: ids that never come have rows in "
        "the embedding and a share in every softmax; --model.vocab-size none follows the data"
    ]


def _prefixes(data: DataConfig) -> list[str]:
    """Of the user's own datasets."""
    if data.blend:
        return [prefix for _, prefix in parse_blend(data.blend)]
    return [data.prefix] if data.prefix is not None else []


def _vocabulary(data: DataConfig, prefixes: list[str]) -> tuple[int | None, str]:
    """How many pieces the data's tokenizer has, None where nothing tells, and which tokenizer that is."""
    if not prefixes and not data.tokenizer:
        return data.vocab_size, "the default corpus's tokenizer"
    path = Path(data.tokenizer) if data.tokenizer else _common_tokenizer(prefixes)
    if path:
        return Tokenizer(path).vocab_size, str(path)
    records = [record for record in map(read_record, prefixes) if record]
    largest = max(records, key=lambda record: record.vocab_size, default=None)
    return (largest.vocab_size, f"the tokenizer in {largest.path}") if largest else (None, "")


def _common_tokenizer(prefixes: list[str]) -> Path | None:
    """The tokenizer beside the datasets, None where there is none. Raises DataError where they have different ones."""
    paths = [path for path in (Path(f"{prefix}.model") for prefix in prefixes) if path.is_file()]
    for path in paths[1:]:
        if path.read_bytes() != paths[0].read_bytes():
            raise DataError(
                f"{paths[0]} and {path} are different tokenizers, so the same id means different text; prepare both "
                "datasets with one of them (--tokenizer), or set data.tokenizer if they were"
            )
    return paths[0] if paths else None
