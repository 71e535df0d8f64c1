"""Every mistake that a config file can hold, with the exact line that it gives."""

from pathlib import Path

import pytest
import yaml

from megaselect.config import Config
from megaselect.config.yaml_file import read_yaml
from megaselect.errors import ConfigError

SHAPE = {"num_layers": 4, "hidden_size": 192, "num_attention_heads": 6, "seq_length": 128, "vocab_size": 4096}
MODEL = "model: {num_layers: 4, hidden_size: 192, num_attention_heads: 6, seq_length: 128, vocab_size: 4096}\n"
SHIPPED = "gpt-1.3b, gpt-350m, gpt-760m, gpt2-124m, paper-175b, paper-1t, paper-22b, paper-530b, tiny"
SWITCH = "is no value of this setting; YAML reads on and yes as True, off and no as False: quote such words"


def model_yaml(**changes) -> str:
    return yaml.safe_dump({"model": {**SHAPE, **changes}})


def load_error(text: str | bytes, tmp_path: Path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        Config.from_yaml("c.yaml")
    return str(caught.value)


UNKNOWN = [
    ("model: {num_layers: 4, hiden_size: 192}", "unknown key model.hiden_size; did you mean model.hidden_size?"),
    ("modle: {num_layers: 4}", "unknown section modle; did you mean model?"),
    ("hidden_size: 3", "unknown key hidden_size; did you mean model.hidden_size?"),
    (MODEL + "training: {dropout_p: 0.1}", "unknown key training.dropout_p; did you mean model.dropout_p?"),
    (MODEL + "recompute: {num_layer: 1}", "unknown key recompute.num_layer; did you mean recompute.num_layers?"),
    (
        MODEL + "training: {eval_batches: 8}",
        "unknown key training.eval_batches; training.eval_samples is in its place, which counts samples, whatever the "
        "micro batch: eval_batches x micro_batch_size of them",
    ),
    (MODEL + "foo: 3", "unknown section foo; the sections are model, data, training, recompute, parallel, logging"),
    (
        MODEL + "recompute: {xyzzy: 1}",
        "unknown key recompute.xyzzy; recompute has mode, modules, method, num_layers, layers, memory",
    ),
    (
        "model: {num_layers: 4}",
        "model.hidden_size, model.num_attention_heads, model.seq_length are missing; add them",
    ),
    ("training: {lr: 1}", "model is missing; add it"),
]

VALUES = [
    (model_yaml(hidden_size=0), "model.hidden_size = 0: must be at least 1"),
    (model_yaml(num_layers=-4), "model.num_layers = -4: must be at least 1"),
    (model_yaml(num_attention_heads=4001), "model.num_attention_heads = 4001: must be at most 4000"),
    (model_yaml(hidden_size=1.5), "model.hidden_size = 1.5: must be a whole number"),
    (model_yaml(hidden_size="1e2"), "model.hidden_size = '1e2': must be a whole number"),
    (model_yaml(hidden_size=[1]), "model.hidden_size = [1]: must be a whole number"),
    (model_yaml(hidden_size=None), "model.hidden_size is empty; give it a value, or remove it"),
    (model_yaml(hidden_size=True), f"model.hidden_size = True: {SWITCH}"),
    (model_yaml(hidden_size=False), f"model.hidden_size = False: {SWITCH}"),
    (model_yaml(init_std="wide"), "model.init_std = 'wide': must be a number"),
    (model_yaml(dropout_p=float("nan")), "model.dropout_p = nan: must be a finite number"),
    (MODEL + "training: {lr: .inf}", "training.lr = inf: must be a finite number"),
    (MODEL + "training: {lr: 0}", "training.lr = 0: must be more than 0.0"),
    (MODEL + "training: {beta1: 1}", "training.beta1 = 1: must be less than 1.0"),
    (
        MODEL + "training: {run_dir: 2024-01-01}",
        "training.run_dir = datetime.date(2024, 1, 1): must be text; put it in quotes",
    ),
    (MODEL + "training: {run_dir: ''}", "training.run_dir = '': must not be empty"),
    (MODEL + "training: {deterministic: maybe}", "training.deterministic = 'maybe': must be true or false"),
    (
        MODEL + "training: {dtype: fp23}",
        "training.dtype = 'fp23': must be auto, fp32, bf16 or fp16; did you mean fp32?",
    ),
    (
        MODEL + "recompute: {mode: ful}",
        "recompute.mode = 'ful': must be none, selective, full or auto; did you mean full?",
    ),
    (MODEL + "recompute: {mode: on}", f"recompute.mode = True: {SWITCH}"),
    (MODEL + "training: {schedule: off}", f"training.schedule = False: {SWITCH}"),
    (
        MODEL + "recompute: full",
        "recompute = 'full': must be a mapping of settings, such as `recompute:` with `key: value` lines under it",
    ),
    (model_yaml(hidden_size="x" * 90), f"model.hidden_size = '{'x' * 56}...: must be a whole number"),
]

RULES = [
    (
        model_yaml(hidden_size=100, num_attention_heads=12),
        "model.num_attention_heads (12) must divide model.hidden_size (100); use 10 heads, or a hidden size such as 96",
    ),
    (model_yaml(dropout_p=1.0), "model.dropout_p = 1.0 is outside [0, 1); use a value such as 0.1, or 0 for none"),
    (model_yaml(dropout_p=-0.1), "model.dropout_p = -0.1 is outside [0, 1); use a value such as 0.1, or 0 for none"),
    (
        model_yaml(attention_dropout_p=0.001),
        "model.attention_dropout_p = 0.001 rounds to 0/256 and drops nothing; use 0, or 0.002 or more",
    ),
    (
        model_yaml(hidden_dropout_p=0.999),
        "model.hidden_dropout_p = 0.999 rounds to 256/256 and drops everything; use 0.998 or less",
    ),
    (
        MODEL + "training: {micro_batch_size: 4, global_batch_size: 6}",
        "training.global_batch_size (6) must be a multiple of training.micro_batch_size (4); "
        "use a global batch of 4 or 8",
    ),
    (
        MODEL + "training: {micro_batch_size: 16, global_batch_size: 8}",
        "training.global_batch_size (8) must be a multiple of training.micro_batch_size (16); use a global batch of 16",
    ),
    (
        MODEL + "training: {lr: 1.0e-4, min_lr: 2.0e-4}",
        "training.min_lr (0.0002) is more than training.lr (0.0001), which it decays from; lower min_lr",
    ),
    (
        MODEL + "training: {schedule: constant, decay_steps: 4}",
        "training.decay_steps (4) has no effect with training.schedule constant; "
        "remove it, or choose cosine, linear or wsd",
    ),
    (
        MODEL + "training: {schedule: wsd, max_steps: 100, warmup_steps: 20, decay_steps: 81}",
        "training.warmup_steps (20) and training.decay_steps (81) do not fit into training.max_steps (100) "
        "with schedule wsd, which decays at the end; lower them",
    ),
    (
        MODEL + "training: {exit_after: soon}",
        "training.exit_after soon: must be a time such as 8h, 90m, 1h30m, 2d or 45s",
    ),
    (MODEL + "training: {exit_after: 0h}", "training.exit_after 0h: must be a time such as 8h, 90m, 1h30m, 2d or 45s"),
    (
        MODEL + "logging: {profile: 3-2}",
        "logging.profile 3-2: must be a step, such as 10, or a range of steps, such as 10-12",
    ),
    (
        MODEL + "logging: {profile: '0'}",
        "logging.profile 0: must be a step, such as 10, or a range of steps, such as 10-12",
    ),
    (
        MODEL + "training: {max_steps: 4}\nlogging: {profile: 5-9}",
        "logging.profile (5-9) begins after training.max_steps (4); profile earlier steps, or train longer",
    ),
]

RECOMPUTE = [
    (
        "{mode: none, method: block}",
        "recompute.method works with mode full only, but recompute.mode is none; "
        "remove it, or set the mode (--recompute full)",
    ),
    (
        "{mode: selective, num_layers: 2}",
        "recompute.num_layers works with mode full only, but recompute.mode is selective; "
        "remove it, or set the mode (--recompute full)",
    ),
    (
        "{mode: full, modules: [softmax]}",
        "recompute.modules works with mode selective only, but recompute.mode is full; "
        "remove it, or set the mode (--recompute selective)",
    ),
    (
        "{layers: even}",
        "recompute.layers works with mode selective or full only, but recompute.mode is none; "
        "remove it, or set the mode (--recompute selective)",
    ),
    (
        "{mode: selective, modules: [softmx]}",
        "recompute.modules = 'softmx': must be softmax, dropout, core_attn, layernorm or gelu; did you mean softmax?",
    ),
    (
        "{mode: selective, modules: softmax}",
        "recompute.modules = 'softmax': must be a list, such as [softmax, dropout]",
    ),
    (
        "{mode: selective, modules: []}",
        "recompute.modules is empty, so that selective would keep everything; "
        "name one of softmax, dropout, core_attn, layernorm, gelu, or all, or set the mode to none",
    ),
    ("{mode: selective, modules: [dropout, dropout]}", "recompute.modules names dropout twice; name it once"),
    (
        "{mode: full, method: block}",
        "recompute.method block needs recompute.num_layers, how many layers it recomputes; "
        "set it (--recompute-num-layers N), or use uniform for all layers",
    ),
    (
        "{mode: full, method: sqrt, num_layers: 2}",
        "recompute.method sqrt chooses the layers per checkpoint itself, but recompute.num_layers is 2; "
        "remove it, or use method uniform",
    ),
    ("{mode: full, num_layers: 5}", "recompute.num_layers (5) is more than model.num_layers (4); use 4 or fewer"),
    ("{mode: full, layers: 0,3-1}", "recompute.layers = '0,3-1' has 3-1 backwards; write 1-3"),
    ("{mode: full, layers: 1-4}", "recompute.layers = '1-4' asks for layer 4, but the model has layers 0-3"),
    (
        "{mode: full, layers: 'first,1'}",
        "recompute.layers = 'first,1' is not understood at 'first'; "
        "write layers such as 0-11 or 0,3,5-7, or one of even, odd, skip-first-last",
    ),
    (
        "{mode: selective, memory: 24GiB}",
        "recompute.memory works with mode auto only, but recompute.mode is selective; "
        "remove it, or set the mode (--recompute auto)",
    ),
    (
        "{mode: auto, layers: even}",
        "recompute.layers works with mode selective or full only, but recompute.mode is auto; "
        "remove it, or set the mode (--recompute selective)",
    ),
    (
        "{mode: auto, memory: 12parsecs}",
        "recompute.memory 12parsecs: must be a size such as 24GiB; "
        "the units are KiB to TiB, K to T (the same), KB to TB",
    ),
    (
        "{mode: auto, memory: 0GiB}",
        "recompute.memory 0GiB: must be a size such as 24GiB; the units are KiB to TiB, K to T (the same), KB to TB",
    ),
    ("{mode: auto, memory: 24}", "recompute.memory = 24: must be text; put it in quotes"),
    ("{mode: full, layers: [1, 2]}", "recompute.layers = [1, 2]: must be text; put it in quotes"),
]
RECOMPUTE = [(f"{MODEL}recompute: {text.replace('0,3-1', repr('0,3-1'))}", message) for text, message in RECOMPUTE]
RECOMPUTE.append(
    (
        model_yaml(num_layers=2) + "recompute: {mode: full, layers: skip-first-last}",
        "recompute.layers = 'skip-first-last' chooses none of the 2 layers; name one, such as 0",
    )
)

FILES = [
    (MODEL + MODEL, "line 2: the key model was given on line 1 already; delete one of the two"),
    (
        "model:\n  num_layers: 1\n  num_layers: 2\n",
        "line 3: the key num_layers was given on line 2 already; delete one of the two",
    ),
    (MODEL + "on: 3\n", "line 2: the key on is not text but True to YAML; quote it"),
    (
        "model:\n  num_layers: 010\n",
        "line 2: num_layers: 010 is 8 to YAML (base 8); write 10 or 8, whichever is meant, or quote it if it is text",
    ),
    (
        "model: {seq_length: -1:30}\n",
        "line 1: seq_length: -1:30 is -90 to YAML (base 60); write -90, or quote it if it is text",
    ),
    (
        "training: {lr: 1:30.5}\n",
        "line 1: lr: 1:30.5 is 90.5 to YAML (base 60); write 90.5, or quote it if it is text",
    ),
    (
        "data:\n  blend: [0.5, a,\n          0_17, b]\n",
        "line 3: blend: 0_17 is 15 to YAML (base 8); write 17 or 15, whichever is meant, or quote it if it is text",
    ),
    (
        "a: [[0" + "7" * 4000 + "]]",
        "line 1: 0"
        + "7" * 59
        + " is a number of 12000 bits to YAML (base 8); write a number of 13288 bits or a number "
        "of 12000 bits, whichever is meant, or quote it if it is text",
    ),
    ("model: {a: 1,\n", "line 2: not valid YAML: expected the node content, but found '<stream end>'"),
    ("a: 1\n\tb: 2", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
    (MODEL + "training: {run_dir: 2024-13-01}", "not valid YAML: month must be in 1..12"),
    ("- 1\n", "holds a list; a config is a mapping of sections, such as `model:`"),
    ("hello", "holds a single value; a config is a mapping of sections, such as `model:`"),
    ("# only a comment\n", "the file is empty; it needs at least the section model"),
    (b"model: \xff\xfe", "not a text file (byte 7 is not UTF-8); save it as UTF-8"),
    (
        "\x00",
        "not valid YAML: unacceptable character #x0000: special characters are not allowed "
        'in "<unicode string>", position 0',
    ),
]


@pytest.mark.parametrize(("text", "message"), [*UNKNOWN, *VALUES, *RULES, *RECOMPUTE, *FILES])
def test_each_mistake_in_a_file_has_its_own_line(text, message, tmp_path, monkeypatch):
    assert load_error(text, tmp_path, monkeypatch) == f"c.yaml: {message}"


def test_numbers_that_mean_what_they_seem_to(tmp_path):
    (tmp_path / "c.yaml").write_text("a: [0, 00, 07, -7, 1_000, 0x1F, 0b11, 10, 0.5, 1.e+3, '010', '1:30', 08]")
    numbers = [0, 0, 7, -7, 1000, 31, 3, 10, 0.5, 1000.0, "010", "1:30", "08"]
    assert read_yaml(tmp_path / "c.yaml") == {"a": numbers}


def test_deep_nesting_is_an_error_of_the_file(tmp_path, monkeypatch):
    message = load_error("a: " + "[" * 5000, tmp_path, monkeypatch)
    assert message.startswith("c.yaml: not valid YAML: maximum recursion depth exceeded")


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("directory.yaml").mkdir()
    Path("loop.yaml").symlink_to("loop.yaml")
    for name, message in (
        ("absent.yaml", f"absent.yaml: no such file; the shipped configs are {SHIPPED}"),
        ("directory.yaml", "directory.yaml: is a directory; name a YAML file in it"),
        ("loop.yaml", "loop.yaml: cannot be read: Too many levels of symbolic links"),
    ):
        with pytest.raises(ConfigError) as caught:
            Config.from_yaml(name)
        assert str(caught.value) == message
