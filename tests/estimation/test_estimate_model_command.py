"""`megaselect estimate --model` as a user meets it: processes in a directory of theirs, bytes equal to a ledger's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_models import HIDDEN, LAYERS, net

import megaselect
from megaselect.cli.main import main
from megaselect.ledger import record
from megaselect.recomputation.tape.settings import SETTINGS

ROOT = Path(__file__).parents[2]
PARAMETERS = LAYERS * (2 * HIDDEN + 2 * 128 * HIDDEN + 128 + HIDDEN)
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 113, "hidden_size": 40}
LLAMA |= {"num_hidden_layers": 2, "intermediate_size": 72, "num_attention_heads": 5, "num_key_value_heads": 5}
LLAMA |= {"max_position_embeddings": 32}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 113, "n_embd": 40, "n_layer": 2}
GPT2 |= {"n_head": 5, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def estimated(capsys):
    """estimated(*arguments): the JSON of a model, such as one of tests/estimation/other_models.py."""

    def run(*arguments):
        assert main(["estimate", "--model", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def directory(tmp_path):
    """directory(**changes): one with the config.json of a tiny Llama."""

    def make(**changes):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
        return str(tmp_path)

    return make


def measured(make, setting):
    """What a forward pass with values saves."""
    model, batch = make()
    megaselect.recompute(model, setting)
    with record(model) as rows:
        model(batch)
    return rows.total


def child(folder, *arguments):
    """As typed in a folder, by the function that an installed command calls: the folder is not on the path."""
    code = "import sys; sys.path.remove(''); from megaselect.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "estimate", "--model", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["net", "keywords"])
def test_bytes_are_those_that_a_forward_pass_saves(name, estimated):
    data = estimated(f"other_models:{name}")
    assert list(data["settings"]) == list(SETTINGS)
    for setting, found in data["settings"].items():
        assert found["saved_bytes"] == measured(net, setting)
        assert sum(found["saved_bytes_by_layer"].values()) == found["saved_bytes"]
        assert (found["is_measured"], found["reason"]) == (False, None)
    assert data["settings"]["full"]["saved_bytes"] < data["settings"]["selective"]["saved_bytes"]
    assert (data["parameters"], data["layers"]) == (PARAMETERS, LAYERS)


def test_what_is_held_follows_the_optimizer_and_the_dtype(estimated):
    four, two = 4 * PARAMETERS, 2 * PARAMETERS
    held = ("weights", "gradients", "master_weights", "optimizer")
    for flags, expected in (
        ([], (four, four, 0, 2 * four)),
        (["--optimizer", "none"], (four, four, 0, 0)),
        (["--dtype", "bf16"], (two, two, four, 2 * four)),
        (["--dtype", "bf16", "--optimizer", "torch-adamw"], (two, two, 0, 2 * two)),
    ):
        assert tuple(estimated("other_models:narrow", *flags)["static_bytes"][name] for name in held) == expected
    assert torch.get_default_dtype() is torch.float32
    trained = PARAMETERS * (LAYERS - 1) // LAYERS
    data = estimated("other_models:frozen")
    assert data["trainable_parameters"] == trained
    assert tuple(data["static_bytes"][name] for name in held) == (four, 4 * trained, 0, 8 * trained)


def test_a_model_that_no_memory_holds_is_estimated(estimated):
    data = estimated("other_models:large")
    assert data["static_bytes"]["weights"] == 4 * PARAMETERS + 4 * 2**35 * HIDDEN
    assert data["settings"]["none"]["saved_bytes"] == measured(net, "none")


def test_where_values_are_needed_a_line_says_so_and_measuring_helps(estimated):
    data = estimated("other_models:peeks")
    assert all(found["saved_bytes"] is None for found in data["settings"].values())
    assert "DataDependentOutputException" in data["settings"]["none"]["reason"]
    data = estimated("other_models:peeks", "--measure")
    assert all(found["is_measured"] for found in data["settings"].values())
    # It saves the factor's loss beside what the plain model does.
    assert 0 <= data["settings"]["selective"]["saved_bytes"] - measured(net, "selective") <= 8


def test_a_model_that_is_not_made_without_values_is_made_with_them(estimated):
    data = estimated("other_models:counts")
    assert data["settings"]["full"]["saved_bytes"] == measured(net, "full")
    assert "Its weights are in memory" in data["notes"][0]


def test_rows_are_those_of_the_setting(estimated):
    rows = estimated("other_models:net", "--rows", "selective")["rows"]["selective"]
    assert sum(row["bytes"] for row in rows if row["status"] == "saved") == measured(net, "selective")


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2 with dropout"])
def test_a_directory_is_enough_for_a_model_of_transformers(config, estimated, directory):
    transformers = pytest.importorskip("transformers")
    folder = directory(**config)
    data = estimated(folder, "--batch-size", "3", "--seq-length", "16")
    assert data["batch"] == "input_ids 3x16 int64, labels 3x16 int64"
    tokens = torch.randint(113, (3, 16))
    for setting, found in data["settings"].items():
        made_by = getattr(transformers, data["model"])
        model = made_by(transformers.AutoConfig.from_pretrained(folder, use_cache=False)).train()
        megaselect.recompute(model, setting)
        with record(model) as rows:
            model(input_ids=tokens, labels=tokens.clone())
        assert found["saved_bytes"] == rows.total
    assert [data["model"]] == config["architectures"]
    assert data["parameters"] == sum(weight.numel() for weight in model.parameters())


def test_a_token_batch_is_as_long_as_the_config_allows(estimated, directory):
    pytest.importorskip("transformers")
    assert estimated(directory())["batch"] == "input_ids 1x32 int64, labels 1x32 int64"
    data = estimated(directory(), "--seq-length", "64")
    assert data["notes"] == ["--seq-length 64 is more than the 32 positions of the model's config."]


def test_the_console_has_80_columns_and_the_folder_is_looked_in(tmp_path):
    shutil.copy(Path(__file__).parent / "other_models.py", tmp_path)
    ended = child(tmp_path, "other_models:net", "--rows", "selective")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "megaselect estimate other_models:net: predicted, nothing was run"
    words = [line.split() for line in lines]
    assert ["parameters", f"{PARAMETERS:,}"] in words
    shown = [row[0] for row in words if row and row[0] in SETTINGS]
    assert shown == list(SETTINGS)
    assert ["saved", "in", "all", f"{measured(net, 'selective'):,}", "128.00", "KiB"] in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["other_model:net"],
            "--model other_model:net: there is no module other_model; give package.module:function, ",
        ),
        (["other_models:nett"], "--model other_models:nett: nett is not there in other_models; did you mean net?\n"),
        (["other_models:number"], "--model other_models:number: number is no function in other_models"),
        (["other_models"], "--model other_models: names no function; give package.module:function, or a directory"),
        (["broken:net"], "--model broken:net: importing broken raises ZeroDivisionError: division by zero\n"),
        (["needs:net"], "--model needs:net: importing needs raises ModuleNotFoundError: No module named 'not_there'\n"),
        (["other_models:raises"], "--model other_models:raises: it raises ValueError: no weights here\n"),
        (["other_models:exits"], "--model other_models:exits: it raises SystemExit: 3\n"),
        (["other_models:returns_a_number"], "it returns a int: return an nn.Module, or (nn.Module, batch)\n"),
        (
            ["other_models:without_batch"],
            "no config.vocab_size to draw tokens from: return (model, batch)",
        ),
        (
            ["other_models:wrong_batch"],
            "Net does not run on its batch (4x16x33 float32): RuntimeError: Given ",
        ),
        (["other_models:wrong_batch", "--measure"], "Net does not run on its batch (4x16x33 float32): RuntimeError: "),
        (
            ["other_models:net", "--batch-size", "2"],
            "--batch-size: other_models:net returns a batch of its own, ",
        ),
        (["other_models:net", "--seq-length", "0"], "--seq-length: 0: must be a whole number of at least 1; --help "),
        (["empty"], "--model empty: has no config.json, by which transformers makes a model\n"),
        (["not/there"], "--model not/there: no such directory; give package.module:function, or a directory with"),
        (["unknown"], "--model unknown: in its config.json, architectures is ['NoSuchModel']: name a class of "),
        (["torn"], "--model torn: transformers cannot read config.json: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    if arguments[0] in ("unknown", "torn"):
        pytest.importorskip("transformers")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needs.py").write_text("import not_there\n")
    configs = {"unknown": json.dumps(LLAMA | {"architectures": ["NoSuchModel"]}), "torn": "{", "empty": None}
    for name, content in configs.items():
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "config.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = main(["estimate", "--model", *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_without_transformers_a_directory_says_what_is_missing(directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    folder = directory()
    assert main(["estimate", "--model", folder]) == 2
    said = f"error: --model {folder}: a config.json needs the package transformers: pip install transformers\n"
    assert capsys.readouterr().err == said


def test_debug_shows_the_users_own_traceback(tmp_path):
    shutil.copy(Path(__file__).parent / "other_models.py", tmp_path)
    ended = child(tmp_path, "other_models:raises", "--debug")
    assert ended.returncode == 2
    assert "other_models.py" in ended.stderr
    assert ended.stderr.endswith("error: --model other_models:raises: it raises ValueError: no weights here\n")
