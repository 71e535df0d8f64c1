"""The flags of `train`: exact messages, precedence over the file, Megatron-LM's spellings, and the help."""

import subprocess
import sys
from pathlib import Path

import pytest

from megaselect.cli.flags import SHORT_FLAGS, RunCommand
from megaselect.cli.train import parse_train_args
from megaselect.config import Config, iter_settings
from megaselect.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = (
    "the shipped configs are gpt-1.3b, gpt-350m, gpt-760m, gpt2-124m, paper-175b, paper-1t, paper-22b, paper-530b, tiny"
)
BLOCK = """\
model: {num_layers: 4, hidden_size: 192, num_attention_heads: 6, seq_length: 128, vocab_size: 4096}
recompute: {mode: full, method: block, num_layers: 2, layers: 0-2}
"""


@pytest.fixture(autouse=True)
def _directory_with_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("block.yaml").write_text(BLOCK)
    Path("directory.yaml").mkdir()


def parse(line: str) -> RunCommand:
    return parse_train_args(line.split())


def recompute_of(line: str) -> dict:
    return parse(line).config.to_dict()["recompute"]


def test_no_flags_give_the_tiny_config():
    command = parse("")
    expected = Config.from_yaml(ROOT / "configs/tiny.yaml")
    assert (command.config, command.config_path, command.notes) == (expected, ROOT / "configs/tiny.yaml", [])


def test_a_shipped_config_is_shown_relative_to_the_working_directory(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert parse("--config gpt-1.3b").config_path == Path("configs/gpt-1.3b.yaml")


def test_a_file_goes_before_a_shipped_name_and_a_directory_does_not():
    Path("tiny").mkdir()
    assert parse("--config tiny").config_path == ROOT / "configs/tiny.yaml"
    Path("gpt2-124m").write_text(BLOCK)
    command = parse("--config gpt2-124m")
    assert (command.config_path, command.config.recompute.method) == (Path("gpt2-124m"), "block")


# What to give each flag, where 3 does not fit, with what must stand beside it.
VALUES = {
    "model.hidden_size": ("384", ""),
    "model.vocab_size": ("5000", ""),
    "model.dropout_p": ("0.25", ""),
    "model.attention_dropout_p": ("0.5", ""),
    "model.hidden_dropout_p": ("0.125", ""),
    "model.attention": ("unfused", ""),
    "model.kernel_backend": ("torch", ""),
    "data.blend": ("0.7 data/a 0.3 data/b", ""),
    "data.valid_fraction": ("0.5", "--data.prefix data/a"),
    "data.test_fraction": ("0.25", ""),
    "training.exit_after": ("1h30m", ""),
    "parallel.sharding": ("gradients", ""),
    "parallel.reduction": ("native", ""),
    "parallel.timeout": ("90s", ""),
    "training.on_nonfinite": ("skip", ""),
    "training.on_oom": ("step-up", ""),
    "training.micro_batch_size": ("2", ""),
    "training.global_batch_size": ("16", ""),
    "training.dtype": ("bf16", ""),
    "training.device": ("cpu", ""),
    "training.min_lr": ("0.001", ""),
    "training.schedule": ("linear", ""),
    "training.beta1": ("0.5", ""),
    "training.beta2": ("0.5", ""),
    "recompute.mode": ("full", ""),
    "recompute.modules": ("core_attn", "--recompute selective"),
    "recompute.method": ("block", "--recompute full --recompute-num-layers 1"),
    "recompute.num_layers": ("3", "--recompute full"),
    "recompute.layers": ("3", "--recompute full"),
    "recompute.memory": ("24GiB", "--recompute auto"),
    "logging.wandb": ("offline", ""),
}


@pytest.mark.parametrize("name", [name for name, field in iter_settings() if field.annotation is not bool])
def test_every_setting_has_a_flag_that_sets_it_alone(name):
    section, _, key = name.partition(".")
    text, beside = VALUES.get(name, ("3", ""))
    flag = SHORT_FLAGS.get(name, f"--{section}.{key.replace('_', '-')}")
    before, after = parse(beside).config.to_dict(), parse(f"{flag} {text} {beside}").config.to_dict()
    got = after[section].pop(key)
    before[section].pop(key, None)
    if isinstance(got, list):
        assert got == text.split()
    else:
        assert got == type(got)(text)
    assert {**after, "recompute": {}} == {**before, "recompute": {}}


def test_deterministic_is_switched_off_and_on():
    assert parse("--no-deterministic").config.training.deterministic is False
    Path("loose.yaml").write_text(BLOCK + "training: {deterministic: no}\n")
    assert parse("--config loose.yaml").config.training.deterministic is False
    assert parse("--config loose.yaml --deterministic").config.training.deterministic is True


def test_flags_take_underscores_and_equals_signs():
    config = parse("--max_steps=7 --model.hidden_size 96").config
    assert (config.training.max_steps, config.model.hidden_size) == (7, 96)
    assert parse("--run_dir=a_b --no_deterministic").config.training.run_dir == "a_b"


def test_none_unsets_what_a_file_sets():
    Path("set.yaml").write_text(BLOCK.replace("4096}", "4096, ffn_hidden_size: 100}"))
    assert parse("--config set.yaml").config.model.ffn_hidden_size == 100
    assert parse("--config set.yaml --model.ffn-hidden-size none").config.model.ffn_hidden_size == 768
    assert recompute_of("--config set.yaml --recompute-layers none")["layers"] is None
    assert parse("--resume none --wandb off").config.training.resume == "none"


@pytest.mark.parametrize(
    ("line", "recompute"),
    [
        ("--config block.yaml", {"mode": "full", "method": "block", "num_layers": 2, "layers": "0-2"}),
        ("--config block.yaml --recompute none", {"mode": "none"}),
        (
            "--config block.yaml --recompute selective",
            {"mode": "selective", "modules": ["softmax", "dropout"], "layers": "0-2"},
        ),
        (
            "--config block.yaml --recompute-method sqrt",
            {"mode": "full", "method": "sqrt", "num_layers": None, "layers": "0-2"},
        ),
        (
            "--recompute selective --recompute-modules dropout core_attn --recompute-layers even",
            {"mode": "selective", "modules": ["dropout", "core_attn"], "layers": "even"},
        ),
    ],
)
def test_flags_win_over_the_file(line, recompute):
    assert recompute_of(line) == recompute


@pytest.mark.parametrize(
    ("line", "recompute", "note"),
    [
        (
            "--recompute-granularity selective",
            {"mode": "selective", "modules": ["core_attn"], "layers": None},
            "note: --recompute-granularity selective (Megatron-LM's) is read as "
            "--recompute selective --recompute-modules core_attn",
        ),
        (
            "--recompute_activations",
            {"mode": "selective", "modules": ["core_attn"], "layers": None},
            "note: --recompute-activations (Megatron-LM's) is read as "
            "--recompute selective --recompute-modules core_attn",
        ),
        (
            "--recompute-activations --recompute-granularity selective --recompute-modules dropout",
            {"mode": "selective", "modules": ["dropout"], "layers": None},
            "note: --recompute-granularity selective (Megatron-LM's) is read as --recompute selective",
        ),
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2",
            {"mode": "full", "method": "uniform", "num_layers": 2, "layers": None},
            "note: --recompute-granularity full (Megatron-LM's) is read as --recompute full",
        ),
    ],
)
def test_megatron_flags_are_mapped_and_the_mapping_is_said(line, recompute, note):
    command = parse(line)
    assert command.config.to_dict()["recompute"] == recompute
    assert command.notes == [note]


def test_a_run_that_ends_in_its_warm_up_says_so():
    assert parse("--max-steps 50").notes == ["note: the run ends at step 50, inside its warm-up of 50 steps"]
    assert parse("--max-steps 51").notes == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lr 3", "unknown flag --lr; did you mean --training.lr?"),
        ("--max 3", "unknown flag --max; did you mean --max-steps?"),
        ("--max-step 3", "unknown flag --max-step; did you mean --max-steps?"),
        ("--training.max-steps 3", "unknown flag --training.max-steps; did you mean --max-steps?"),
        ("--num_layers=3", "unknown flag --num-layers; did you mean --model.num-layers or --recompute-num-layers?"),
        ("--model.hiden-size 3", "unknown flag --model.hiden-size; did you mean --model.hidden-size?"),
        ("--recompute-granularty full", "unknown flag --recompute-granularty; did you mean --recompute-granularity?"),
        ("--zzz", "unknown flag --zzz; --help lists the flags"),
        ("-x", "unknown flag -x; --help lists the flags"),
        ("full", "unexpected argument full; flags start with --, and --help lists them"),
        ("--max-steps", "--max-steps: expected one argument; --help lists the flags"),
        ("--recompute-modules", "--recompute-modules: expected at least one argument; --help lists the flags"),
        ("--max-steps x", "--max-steps x: must be a whole number"),
        ("--max-steps -3", "--max-steps -3: must be at least 1"),
        ("--training.lr none", "--training.lr none: must be a number"),
        (
            "--recompute slective",
            "--recompute slective: must be none, selective, full or auto; did you mean selective?",
        ),
        (
            "--recompute-modules softmax core",
            "--recompute-modules core: must be softmax, dropout, core_attn, layernorm or gelu; did you mean core_attn?",
        ),
        (
            "--model.dropout-p 0.001",
            "--model.dropout-p: model.dropout_p = 0.001 rounds to 0/256 and drops nothing; use 0, or 0.002 or more",
        ),
        (
            f"--config {ROOT}/configs/tiny.yaml --model.hidden-size 100",
            f"--model.hidden-size with {ROOT}/configs/tiny.yaml: model.num_attention_heads (6) must divide "
            "model.hidden_size (100); use 5 heads, or a hidden size such as 96",
        ),
        (
            "--recompute-num-layers 3",
            "--recompute-num-layers: recompute.num_layers works with mode full only, but recompute.mode is none; "
            "remove it, or set the mode (--recompute full)",
        ),
        (
            "--config block.yaml --recompute none --recompute-modules softmax",
            "--recompute-modules and --recompute: recompute.modules works with mode selective only, "
            "but recompute.mode is none; remove it, or set the mode (--recompute selective)",
        ),
        (
            "--config block.yaml --recompute-modules softmax",
            "--recompute-modules with block.yaml: recompute.modules works with mode selective only, "
            "but recompute.mode is full; remove it, or set the mode (--recompute selective)",
        ),
        (
            "--config block.yaml --model.num-layers 1",
            "--model.num-layers with block.yaml: recompute.num_layers (2) is more than model.num_layers (1); "
            "use 1 or fewer",
        ),
        (
            "--recompute-activations --recompute-granularity full",
            "--recompute-activations means --recompute-granularity selective, but --recompute-granularity is full; "
            "give one of the two",
        ),
        (
            "--recompute-granularity full --recompute full",
            "--recompute-granularity is Megatron-LM's name for --recompute; give one of the two",
        ),
        ("--recompute-granularity partial", "--recompute-granularity partial: must be selective or full"),
        ("--config absent", f"--config absent: no such file; {SHIPPED}"),
        ("--config configs/tiny.yaml", f"--config configs/tiny.yaml: no such file; {SHIPPED}"),
        ("--config directory.yaml", "directory.yaml: is a directory; name a YAML file in it"),
    ],
)
def test_each_mistake_in_the_flags_has_its_own_line(line, message):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert str(caught.value) == message


def test_help_and_mistakes_come_before_torch_is_imported():
    code = (
        "import sys; from megaselect.cli.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit as stop: print('exit', stop.code)\n"
        "print('rc', main(['train', '--lr', '3']), sorted({'torch', 'triton', 'numpy', 'wandb'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert child.stdout.endswith("exit 0\nrc 2 []\n")


def test_a_flag_of_several_values_that_is_given_twice_has_them_all():
    command = parse("--recompute selective --recompute-modules dropout --recompute-modules gelu layernorm")
    assert command.config.recompute.modules == ("dropout", "gelu", "layernorm")
