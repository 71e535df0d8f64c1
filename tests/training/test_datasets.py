"""From the data section of a config to the sources of a run, and what the section refuses."""

import re

import pytest

from megaselect.config import Config
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.tokenizer import train_tokenizer
from megaselect.errors import ConfigError, DataError
from megaselect.training.datasets import open_datasets

SHAPE = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "seq_length": 16, "vocab_size": 280}
SENTENCES = ["the cat sat on the mat\n", "the dog sat\ton the log\n"] * 10


def config_of(**data):
    return Config.from_dict({"model": SHAPE, "data": data})


@pytest.fixture
def two(tmp_path, write_dataset):
    write_dataset(tmp_path / "a", 1601)
    write_dataset(tmp_path / "b", 801)
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_a_blend(two):
    a, b = two
    datasets = open_datasets(config_of(blend=[3, a, 1, b], valid_fraction=0.25, test_fraction=0.25))
    assert datasets.train.counts(8) == datasets.valid.counts(8) == datasets.test.counts(8) == {a: 6, b: 2}
    assert datasets.description == f"3 {a} + 1 {b}; 1,200 tokens"
    assert datasets.tokenizer is None
    assert re.fullmatch(r"[0-9a-f]{16}", datasets.fingerprint)
    other = open_datasets(config_of(blend=["0.5", a, "0.5", b], valid_fraction=0.25, test_fraction=0.25))
    assert other.fingerprint != datasets.fingerprint


def test_a_blend_of_one_is_the_dataset(two):
    alone, blended = (open_datasets(config_of(**data)) for data in ({"prefix": two[0]}, {"blend": [5, two[0]]}))
    assert alone.fingerprint == blended.fingerprint
    assert alone.test is None
    assert alone.train.counts(8) == {}


def test_the_tokenizer_of_a_blend_is_the_one_that_its_datasets_share(two, tmp_path):
    model = train_tokenizer(SENTENCES, 280)
    (tmp_path / "b.model").write_bytes(model)
    assert open_datasets(config_of(blend=[1, two[0], 1, two[1]])).tokenizer.vocab_size == 280
    (tmp_path / "a.model").write_bytes(model)
    assert open_datasets(config_of(blend=[1, two[0], 1, two[1]])).tokenizer.vocab_size == 280
    (tmp_path / "a.model").write_bytes(train_tokenizer(SENTENCES, 279))
    with pytest.raises(DataError) as caught:
        open_datasets(config_of(blend=[1, two[0], 1, two[1]]))
    assert str(caught.value) == (
        f"{two[0]}.model and {two[1]}.model are different tokenizers, so the same id means different text; prepare "
        "both datasets with one of them (--tokenizer), or set data.tokenizer if they were"
    )
    assert open_datasets(config_of(blend=[1, two[0], 1, two[1]], tokenizer=f"{two[1]}.model")).tokenizer


def test_check_reads_all_tokens_before_training(tmp_path, write_dataset):
    write_dataset(tmp_path / "a", 1601)
    datasets = open_datasets(config_of(prefix=str(tmp_path / "a"), check=True))
    assert datasets.train.num_tokens == 1520
    tokens = IndexedDataset(tmp_path / "a").tokens
    assert datasets.notes == (
        f"note: --data.check read 1,601 tokens in 1 document: ids {tokens.min()} to {tokens.max()}, all in "
        "the vocabulary of 280",
    )
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[2 * 1600] = 0xFF
    content[2 * 1600 + 1] = 0xFF
    (tmp_path / "a.bin").write_bytes(content)
    open_datasets(config_of(prefix=str(tmp_path / "a")))
    with pytest.raises(
        DataError, match=r"a\.bin holds token id 65535 in document 0 at token 1600 .* vocabulary of 280;"
    ):
        open_datasets(config_of(prefix=str(tmp_path / "a"), check=True))


def test_check_holds_the_tokens_against_the_tokenizer_where_there_is_one(two, tmp_path):
    (tmp_path / "a.model").write_bytes(train_tokenizer(SENTENCES, 271))
    open_datasets(config_of(prefix=two[0], check=True))
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[0:2] = (275).to_bytes(2, "little")
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"token id 275 in document 0 at token 0 .* outside the 271 pieces of the tok"):
        open_datasets(config_of(prefix=two[0], check=True))


def test_a_tokenizer_that_did_not_write_the_data_is_noticed_without_check(two, tmp_path):
    (tmp_path / "a.model").write_bytes(train_tokenizer(SENTENCES, 279))
    (tmp_path / "a.json").write_text('{"vocab_size": 280}')
    with pytest.raises(DataError, match=r"a was written with a tokenizer of 280 pieces .* has 279; name the one"):
        open_datasets(config_of(prefix=two[0]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"blend": [0.7, "a", 0.3]},
            "config: data.blend has 3 words (0.7 a 0.3), not pairs of two; give pairs of a weight and a dataset, such "
            "as 0.7 data/a 0.3 data/b",
        ),
        (
            {"blend": ["a", 0.7]},
            "config: data.blend has 'a' where a weight belongs; give pairs of a weight and a dataset, such as "
            "0.7 data/a 0.3 data/b",
        ),
        ({"blend": [0, "a"]}, "config: data.blend has the weight 0; weights are more than 0, such as 0.7"),
        ({"blend": ["inf", "a"]}, "config: data.blend has the weight inf; weights are more than 0, such as 0.7"),
        (
            {"blend": [1, "a", 2, "a"]},
            "config: data.blend names a twice; name it once, with the sum of the weights",
        ),
        (
            {"blend": [1, "a"], "prefix": "b"},
            "config: data.blend and data.prefix (b) both say what to train on; remove one of them",
        ),
        (
            {"valid_fraction": 0.1},
            "config: data.valid_fraction (0.1) has no effect on the default corpus, which brings its own validation "
            "split; remove it, or set data.valid_prefix, or data.prefix to a dataset of your own",
        ),
        (
            {"prefix": "a", "valid_fraction": 0.1, "valid_prefix": "b"},
            "config: data.valid_fraction (0.1) has no effect beside data.valid_prefix (b); remove one of them",
        ),
        (
            {"prefix": "a", "test_fraction": 0.1, "test_prefix": "b"},
            "config: data.test_fraction (0.1) has no effect beside data.test_prefix (b); remove one of them",
        ),
        (
            {"prefix": "a", "valid_fraction": 0.5, "test_fraction": 0.5},
            "config: data.valid_fraction (0.5) and data.test_fraction (0.5) leave nothing to train on; lower them",
        ),
    ],
)
def test_data_settings_that_contradict_each_other(data, message):
    with pytest.raises(ConfigError) as caught:
        config_of(**data)
    assert str(caught.value) == message


def test_a_saved_config_is_a_config():
    for data in ({}, {"blend": [0.7, "a", 0.3, "b"]}, {"prefix": "a", "test_prefix": "c", "valid_prefix": "b"}):
        config = config_of(**data)
        assert Config.from_dict(config.to_dict()) == config


def test_a_run_says_that_its_data_was_checked(two, tmp_path, run_main):
    flags = ("--max-steps", 1, "--device", "cpu", "--model.vocab-size", 256, "--run-dir", tmp_path / "run")
    run = run_main("--data.prefix", two[0], "--data.check", *flags)
    assert "note: --data.check read 1,601 tokens in 1 document: ids " in " ".join(run.stdout.split()), run.stderr
