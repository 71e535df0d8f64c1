"""Whatever a config file, a mapping or a command line holds: a valid Config, or a ConfigError of one line."""

import datetime
import string
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaselect.cli.flags import SHORT_FLAGS
from megaselect.cli.train import parse_train_args
from megaselect.config import Config, iter_settings
from megaselect.config.format_value import LONGEST_MESSAGE
from megaselect.errors import ConfigError

VALID = yaml.safe_load((Path(__file__).parents[1] / "configs" / "tiny.yaml").read_text())
NAMES = [name for name, _ in iter_settings()]
SECTIONS = sorted({name.partition(".")[0] for name in NAMES})
WORDS = [
    "none",
    "auto",
    "all",
    "off",
    "full",
    "selective",
    "even",
    "0-3",
    "0-999999999",
    "24GiB",
    "8h",
    "10-12",
    "1e999",
]
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
SHORT_SECONDS = 5.0

numbers = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64 - 1, 2**64, 10**12 + 39, 10**400, -(10**4000), 10**4000]),
    st.floats(),
)
texts = st.one_of(st.text(), st.sampled_from(WORDS), st.text(string.printable, max_size=30), st.just("9" * 5000))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.dates(), st.datetimes(), st.binary(max_size=20))
names = st.one_of(st.sampled_from(NAMES).map(lambda name: name.partition(".")[2]), texts)
keys = st.one_of(names, st.integers(), st.none(), st.booleans(), st.floats(), st.dates())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=8,
)
anything = st.dictionaries(
    st.one_of(st.sampled_from(SECTIONS), keys), st.one_of(values, st.dictionaries(keys, values, max_size=6)), max_size=6
)


@st.composite
def mutated(draw):
    """The tiny config with up to four settings set to something else, renamed, or removed."""
    mapping = {section: dict(content or {}) for section, content in VALID.items()}
    for _ in range(draw(st.integers(1, 4))):
        section, _, name = draw(st.sampled_from(NAMES)).partition(".")
        content = mapping.setdefault(section, {})
        change = draw(st.sampled_from(["set", "set", "set", "rename", "remove"]))
        if change == "set":
            content[name] = draw(values)
        else:
            old = content.pop(name, None)
            if change == "rename":
                content[draw(keys)] = old
    return mapping


@st.composite
def documents(draw):
    """YAML, or what was YAML before some of its characters changed."""
    text = yaml.safe_dump(draw(st.one_of(mutated(), anything)), allow_unicode=True)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        piece = draw(
            st.sampled_from(
                [*"{}[]:,&*!|>%@`#?-\t\n\0'\"", "&a ", "*a", "<<: *a", "!!int ", "!!timestamp ", "---\n", "  "]
            )
        )
        text = text[:place] + piece + text[place + draw(st.integers(0, 3)) :]
    return text.encode("utf-8", "surrogatepass")


flags = st.one_of(
    st.sampled_from([*SHORT_FLAGS.values(), *(f"--{name.replace('_', '-')}" for name in NAMES), "--config"]),
    st.text(string.printable, max_size=12).map(lambda text: f"--{text}"),
)
command_lines = st.lists(
    st.one_of(st.tuples(flags), st.tuples(flags, st.one_of(texts, numbers.map(str)))),
    max_size=5,
).map(lambda pairs: [word for pair in pairs for word in pair])


def accepted(read):
    """The Config, or None and an error of one line; in no long time."""
    began = time.process_time()
    try:
        config = read()
    except ConfigError as error:
        message = str(error)
        assert message.isprintable(), message
        assert 0 < len(message) <= LONGEST_MESSAGE
        config = None
    assert time.process_time() - began < SHORT_SECONDS
    return config


def check_mapping(mapping):
    config = accepted(lambda: Config.from_dict(mapping))
    if config is not None:
        assert Config.from_dict(config.to_dict()) == config


def check_document(path, content):
    path.write_bytes(content)
    accepted(lambda: Config.from_yaml(path))


def check_command_line(words):
    if not {"--help", "-h", "--version"} & set(words):
        accepted(lambda: parse_train_args(words).config)


FUZZED = {
    "mapping": (st.one_of(mutated(), anything), check_mapping),
    "document": (st.one_of(documents(), st.binary()), None),
    "command line": (command_lines, check_command_line),
}


def fuzz(kind, path, examples):
    """How many inputs were tried: each gave a config or an error of one line."""
    inputs, check = FUZZED[kind]
    tried = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=CHECKS, database=None)
    @given(inputs)
    def run(value):
        nonlocal tried
        tried += 1
        if check is None:
            check_document(path, value)
        else:
            check(value)

    run()
    return tried


@pytest.mark.parametrize("kind", FUZZED)
def test_any_input_gives_a_config_or_one_line(kind, tmp_path):
    assert fuzz(kind, tmp_path / "c.yaml", 150) >= 150


@pytest.mark.soak
@pytest.mark.parametrize("kind", FUZZED)
def test_a_hundred_thousand_inputs_give_a_config_or_one_line(kind, tmp_path):
    assert fuzz(kind, tmp_path / "c.yaml", 35_000) >= 35_000


MODEL = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 16, "vocab_size": 64}
REST_OF_MODEL = "{hidden_size: 64, num_attention_heads: 4, seq_length: 16, vocab_size: 64"
BOMB = "[&a [x, x, x, x, x, x, x, x, x], " + "".join(
    f"&{name} [{', '.join([f'*{before}'] * 9)}], " for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FOUND = {
    "layers that nobody could list": {
        "model": MODEL | {"num_layers": 10**12},
        "recompute": {"mode": "full", "layers": "even"},
    },
    "a hidden size whose divisors nobody could try": {"model": MODEL | {"hidden_size": 10**12 + 39}},
    "a number that Python does not write": {"model": MODEL | {"seq_length": 10**5000}},
    "a negative one": {"model": MODEL, "training": {"max_steps": -(10**5000)}},
    "text of as many digits": {"model": MODEL | {"vocab_size": "9" * 4000}},
    "line breaks in a value": {"model": MODEL, "recompute": {"mode": "auto", "memory": "24\nGallons"}},
    "an escape in a key": {"model": MODEL, "\x1b[2J": 1},
    "a date for a number": {"model": MODEL | {"num_layers": datetime.date(2024, 1, 1)}},
    "long text": {"model": MODEL, "recompute": {"mode": "full", "layers": "1," * 100_000}},
    "keys that are no text": {"model": MODEL, 1: 2, None: 3},
}


@pytest.mark.parametrize("name", FOUND)
def test_mappings_that_were_once_more_than_a_line(name):
    assert accepted(lambda: Config.from_dict(FOUND[name])) is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (f"model: {REST_OF_MODEL}, num_layers: 0x{'f' * 9000}}}".encode(), "num_layers = a number of 36000 bits"),
        (f"model: {REST_OF_MODEL}, num_layers: {BOMB}]}}".encode(), "num_layers = [['x', 'x'"),
        (f"model: {REST_OF_MODEL}, num_layers: &z [*z, *z]}}".encode(), "num_layers = [[[...], [...]]"),
        (MERGE_BOMB.encode(), "merges more than 10,000 keys"),
        (b"[" * 100_000, "not valid YAML"),
        (b"a: !!timestamp x", "not valid YAML"),
        (b"a: !!bool x", "not valid YAML"),
        (b"a: 1" + b":59" * 400 + b":1.5", "not valid YAML"),
        (b"model: \xff", "not a text file"),
        (b"model: \0", "not valid YAML"),
        (b"# " + b"x" * 2**18, "larger than 256 KiB"),
    ],
)  # fmt: skip
def test_documents_that_were_once_more_than_a_line(content, part, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Config.from_yaml(tmp_path / "c.yaml")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= LONGEST_MESSAGE
    assert part in message


@pytest.mark.parametrize("name", ["9" * 5000, "a\0b", "a\nb", "", "\ud800"])
def test_names_that_no_file_has_are_refused_in_a_line(name):
    assert accepted(lambda: parse_train_args(["--config", name]).config) is None
    assert accepted(lambda: Config.from_yaml(name)) is None


def test_a_file_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"^/dev/zero: larger than 256 KiB"):
        Config.from_yaml("/dev/zero")
