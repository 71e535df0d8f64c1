"""The model's vocabulary is the data's, where it is not given."""

import json

import pytest
import yaml

from megaselect.cli.main import main
from megaselect.config import Config
from megaselect.data.tokenizer import train_tokenizer
from megaselect.errors import DataError
from megaselect.training.data_choice import follow_vocabulary
from megaselect.training.datasets import open_datasets

SHAPE = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "seq_length": 16}
SENTENCES = ["the cat sat on the mat\n", "the dog sat\ton the log\n"] * 10
PIECES = 280


@pytest.fixture(scope="module")
def model_file():
    return train_tokenizer(SENTENCES, PIECES)


@pytest.fixture
def prefix(write_dataset, tmp_path):
    """Of a dataset without a tokenizer, with ids below 256."""
    return write_dataset(tmp_path / "a", 1601)


@pytest.fixture
def spoken(prefix, model_file):
    """The same with a tokenizer beside it."""
    prefix.with_suffix(".model").write_bytes(model_file)
    return prefix


def config_of(vocab_size=None, **data):
    data = {name: str(value) if name != "blend" else value for name, value in data.items()}
    return Config.from_dict({"model": SHAPE | {"vocab_size": vocab_size}, "data": data})


def test_without_data_it_is_that_of_the_default_corpus():
    assert config_of().model.vocab_size == 4096
    assert config_of(vocab_size=300).model.vocab_size == 300
    small = Config.from_dict({"model": SHAPE, "data": {"vocab_size": 512}})
    assert small.model.vocab_size == 512
    assert Config.from_dict(small.to_dict(), overrides={"data.vocab_size": 600}).model.vocab_size == 600
    followed, notes = follow_vocabulary(small)
    assert (followed.to_dict()["model"]["vocab_size"], notes) == (512, [])


def test_it_is_that_of_the_tokenizer_beside_the_data_or_named(spoken, model_file, tmp_path):
    assert config_of(prefix=spoken).model.vocab_size == 4096  # nothing is read here
    for data in ({"prefix": spoken}, {"blend": [1, str(spoken)]}):
        config, notes = follow_vocabulary(config_of(**data))
        assert (config.model.vocab_size, config.to_dict()["model"]["vocab_size"], notes) == (PIECES, PIECES, [])
        assert open_datasets(config).tokenizer.vocab_size == PIECES
    named = tmp_path / "named.model"
    named.write_bytes(train_tokenizer(SENTENCES, 275))
    assert follow_vocabulary(config_of(prefix=spoken, tokenizer=named))[0].model.vocab_size == 275
    assert follow_vocabulary(config_of(tokenizer=named))[0].model.vocab_size == 275


def test_without_a_tokenizer_it_is_the_records(prefix, write_dataset, tmp_path):
    """Of a blend the largest, since each record may be of its own."""
    other = write_dataset(tmp_path / "b", 801)
    (tmp_path / "a.json").write_text(json.dumps({"vocab_size": 264}))
    (tmp_path / "b.json").write_text(json.dumps({"vocab_size": 290}))
    assert follow_vocabulary(config_of(prefix=prefix))[0].model.vocab_size == 264
    assert follow_vocabulary(config_of(blend=[1, str(prefix), 1, str(other)]))[0].model.vocab_size == 290


def test_where_nothing_tells_it_must_be_given(prefix):
    with pytest.raises(DataError) as caught:
        follow_vocabulary(config_of(prefix=prefix))
    assert str(caught.value) == (
        f"{prefix} came without a tokenizer and without a record of one, so that nothing tells how many ids there "
        "are: set model.vocab_size (--model.vocab-size)"
    )
    config, notes = follow_vocabulary(config_of(256, prefix=prefix))
    assert (config.model.vocab_size, notes) == (256, [])


def test_a_larger_one_is_noted_and_a_smaller_one_refused(spoken):
    config, [note] = follow_vocabulary(config_of(300, prefix=spoken))
    assert config.model.vocab_size == 300
    assert note == (
        f"note: model.vocab_size 300 is more than the 280 pieces of {spoken}.model: ids that never come have rows in "
        "the embedding and a share in every softmax; --model.vocab-size none follows the data"
    )
    assert follow_vocabulary(config_of(PIECES, prefix=spoken))[1] == []
    config, notes = follow_vocabulary(config_of(270, prefix=spoken))
    assert (config.model.vocab_size, notes) == (270, [])
    with pytest.raises(DataError, match=r"has 280 pieces, model\.vocab_size is 270: raise"):
        open_datasets(config)


def test_who_opens_the_data_tells_of_missing_files(spoken, tmp_path):
    for data in ({"prefix": tmp_path / "none"}, {"prefix": spoken, "tokenizer": tmp_path / "none.model"}):
        config = config_of(**data)
        assert follow_vocabulary(config) == (config, [])
        with pytest.raises(DataError, match="none"):
            open_datasets(config)


def test_a_run_takes_it_from_its_data_and_keeps_it(run_main, spoken, tmp_path):
    """The run directory has the number."""
    run_dir = tmp_path / "run"
    flags = ("--data.prefix", spoken, "--device", "cpu", "--training.sample-tokens", 0, "--run-dir", run_dir)
    done = run_main("--max-steps", 1, *flags)
    assert done.returncode == 0, done.stderr
    assert f"vocabulary {PIECES}\n" in done.stdout
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["model"]["vocab_size"] == PIECES
    again = run_main("--max-steps", 2, *flags)
    assert (again.returncode, "vocabulary" in again.stderr) == (0, False)
    larger = run_main("--max-steps", 1, *flags[:-1], tmp_path / "larger", "--model.vocab-size", 300)
    assert "note: model.vocab_size 300 is more than the 280 pieces of" in " ".join(larger.stdout.split())


def test_commands_that_tell_of_a_run_follow_its_data(spoken, capsys):
    """As training does: or else they would tell of another model."""
    shape = ("--model.num-layers", "2", "--model.hidden-size", "32", "--model.num-attention-heads", "4")
    for flags, padded in (((), 4096), (("--data.prefix", str(spoken)), 384), (("--model.vocab-size", "500"), 512)):
        assert main(["estimate", "--json", *shape, *flags]) == 0
        parameters = json.loads(capsys.readouterr().out)["parameters"]
        layers = 2 * (12 * 32**2 + 13 * 32)
        assert parameters == layers + 32 * (padded + 128) + 2 * 32
