"""`megaselect compare --model` as a user meets it: real processes, a ledger's bytes, the untouched model's bits."""

import dataclasses
import importlib.util
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import compared_models
import pytest
import torch
from rich.console import Console
from torch.utils.checkpoint import checkpoint

import megaselect
from megaselect.cli.main import main
from megaselect.comparison import peers
from megaselect.comparison.any_model import measure_model
from megaselect.comparison.measurement import ModelChoices, ModelJob
from megaselect.comparison.model_rows import HUGGING_FACE, MODEL_SETTINGS, PEERS, SAC, TORCH_REMAT, make_model_rows
from megaselect.comparison.result import read_comparison
from megaselect.comparison.summary import Measured, summarise
from megaselect.comparison.verdict import make_verdict
from megaselect.ledger import record
from megaselect.recomputation.tape.settings import SETTINGS
from megaselect.report.compare_html import make_figures
from megaselect.report.compare_table import print_comparison

GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 113, "n_embd": 40, "n_layer": 2}
GPT2 |= {"n_head": 5, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
STEPS, WARMUP_STEPS = 2, 2


def compare(out, *arguments):
    stdout, stderr = io.StringIO(), io.StringIO()
    flags = ["--steps", str(STEPS), "--device", "cpu", "--wandb", "disabled", "--out", str(out), "--json"]
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        code = main(["compare", "--model", *arguments, *flags])
    assert code == 0, stderr.getvalue()
    result = read_comparison(out / "compare.json")
    assert json.loads(stdout.getvalue()) == json.loads((out / "compare.json").read_text())
    return SimpleNamespace(out=out, progress=stderr.getvalue(), result=result)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return compare(tmp_path_factory.mktemp("encoder"), "compared_models:encoder", "--rounds", "2")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2") / "tiny-gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2))
    sizes = ["--batch-size", "3", "--seq-length", "16", "--rounds", "1"]
    found = compare(folder.parent / "out", str(folder), "--settings", "selective", *sizes)
    return SimpleNamespace(**vars(found), folder=folder)


def saved(model, batch, **keywords):
    """What a pass saves, in this process."""
    with record(model) as rows:
        model(*batch, **keywords)
    return rows.total


def around_each_layer(layers, wrapped):
    """The model's layers behind `wrapped`, as someone would write it by hand."""
    for layer in layers:
        layer.forward = wrapped(layer.forward)


def test_bytes_are_those_that_a_ledger_counts_and_those_predicted(encoder):
    for name in MODEL_SETTINGS:
        model, batch = compared_models.encoder()
        if name != "none":
            megaselect.recompute(model, name)
        row = encoder.result.setting(name)
        assert row.saved.measured == row.saved.predicted == saved(model, [batch])
        assert row.saved.predicted_per_layer == row.saved.measured_per_layer
        assert set(row.saved.measured_per_layer) == {"layers.0", "layers.1"}
    assert encoder.result.setting("full").saved.measured < encoder.result.setting("selective").saved.measured


def test_peers_stand_beside_the_settings_and_save_what_they_save_by_hand(encoder):
    names = [TORCH_REMAT] if importlib.util.find_spec("torch_remat") else []
    assert [row.name for row in encoder.result.settings] == [*MODEL_SETTINGS, SAC, *names]
    assert [row.is_peer for row in encoder.result.settings] == [False] * 4 + [True] * (1 + len(names))
    assert encoder.result.context.notes[1:] == (
        "the model returns no loss: the mean of its output's squares is taken",
        f"{HUGGING_FACE} is left out: TransformerEncoder has no gradient_checkpointing_enable",
    )
    model, batch = compared_models.encoder()
    around_each_layer(model.layers, lambda forward: lambda *given, **named: sac_by_hand(forward, given, named))
    assert encoder.result.setting(SAC).saved.measured == saved(model, [batch])
    for name in names:
        assert encoder.result.setting(name).saved.measured == compared_models.LAYERS * batch.nbytes  # layers' inputs


def sac_by_hand(forward, given, named):
    """By a policy of names: what it saves is what the list of operators saves."""

    def policy(context, function, *_, **__):
        products = ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu")
        is_saved = function.__name__.partition(".")[0] in products
        return torch.utils.checkpoint.CheckpointPolicy["MUST_SAVE" if is_saved else "PREFER_RECOMPUTE"]

    def contexts():
        return torch.utils.checkpoint.create_selective_checkpoint_contexts(policy)

    return checkpoint(lambda *inner: forward(*inner, **named), *given, use_reentrant=False, context_fn=contexts)


def test_losses_gradients_and_weights_are_those_of_the_untouched_model(encoder):
    none, *others = encoder.result.trained
    assert none.losses == tuple(losses_by_hand())
    assert len(set(none.losses)) == len(set(none.gradients_sha256)) == STEPS + WARMUP_STEPS
    for row in others:
        assert (row.agreement.equal, row.rounds_equal, row.gradients_sha256) == (True, True, none.gradients_sha256)
    assert encoder.result.verdict.startswith(
        "Every row trained bitwise equal to the untouched model, `none`: losses, gradients and final weights over 4 "
        "steps. Saved bytes are those predicted, to the byte."
    )


def losses_by_hand():
    """Of the steps that the command is documented to take."""
    torch.manual_seed(1234)
    model, batch = compared_models.encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(1, STEPS + WARMUP_STEPS + 1):
        torch.manual_seed(1234 + step)
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def test_times_and_peaks_are_measured(encoder):
    context = encoder.result.context
    assert (context.steps, context.warmup_steps, context.rounds, context.tokens_per_step) == (STEPS, 2, 2, None)
    for row in encoder.result.trained:
        assert [(sample.round, sample.step) for sample in row.samples] == [(1, 3), (1, 4), (2, 3), (2, 4)]
        for sample in row.samples:
            parts = (sample.forward_seconds, sample.backward_seconds, sample.optimizer_seconds)
            assert all(parts)
            assert sum(parts) <= sample.seconds
        assert row.static.total - row.static.gradients < row.peak.allocated < row.peak.rss
        assert (row.predicted_peak_bytes, row.hardware_flops, row.speed.tokens_per_s) == (None, None, None)
    none, full = (encoder.result.setting(name) for name in ("none", "full"))
    assert full.peak.allocated < none.peak.allocated
    assert encoder.progress.splitlines()[0].startswith("[ 1/14] round 1, none: ")


def test_a_model_of_transformers_beside_its_own_checkpointing(gpt2):
    transformers = pytest.importorskip("transformers")
    context = gpt2.result.context
    assert (context.config_name, context.tokens_per_step) == ("tiny-gpt2", 3 * 16)
    assert context.model.batch == "input_ids 3x16 int64, labels 3x16 int64"
    assert (context.model.kind, context.model.layers, context.model.has_loss) == ("GPT2LMHeadModel", 2, True)
    assert [row.name for row in gpt2.result.settings][:4] == ["none", "selective", HUGGING_FACE, SAC]
    assert all(row.agreement.equal for row in gpt2.result.trained[1:])
    tokens = torch.randint(113, (3, 16))
    for name in ("none", HUGGING_FACE):
        config = transformers.AutoConfig.from_pretrained(gpt2.folder, use_cache=False)
        model = transformers.GPT2LMHeadModel(config).train()
        if name == HUGGING_FACE:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        row = gpt2.result.setting(name)
        assert row.saved.measured == row.saved.predicted == saved(model, [], input_ids=tokens, labels=tokens.clone())


@pytest.mark.parametrize("name", ["encoder", "gpt2"])
def test_the_table_fits_80_columns_and_says_what_is_left_out(name, request):
    result = request.getfixturevalue(name).result
    console = Console(width=80, record=True, file=io.StringIO())
    print_comparison(result, console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if line.startswith("selective "))
    selective, none = result.setting("selective"), result.setting("none")
    assert row[1:3] == [
        f"{selective.saved.measured / 2**20:#.3g}",
        f"{selective.saved.measured / none.saved.measured:.0%}",
    ]
    assert row[-1] == "equal"
    assert ("tokens/s" in lines[2]) == (name == "gpt2")
    assert (f"{HUGGING_FACE} is left out: TransformerEncoder has no" in lines) == (name == "encoder")


@pytest.mark.parametrize("name", ["encoder", "gpt2"])
def test_the_page_has_the_facts_and_every_row(name, request):
    found = request.getfixturevalue(name)
    page = (found.out / "compare.html").read_text()
    assert found.result.verdict in page
    assert found.result.context.model.kind in page
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("<tbody>")[2].partition("</tbody>")[0])
    cells = [re.sub("(<[^>]+>)+", "|", row).strip("|").split("|") for row in rows]
    assert [row[0] for row in cells] == [row.name for row in found.result.settings]
    assert [row[-1] for row in cells] == ["—"] + ["equal"] * (len(rows) - 1)
    keys = [figure.key for figure in make_figures(found.result)]
    assert keys == ["throughput", "memory", "timeline", "time", "loss"]


def measured(name, choices):
    """The row as one process of the first round measures it, in this process."""
    answer = measure_model(ModelJob(choices, name, 1, STEPS, WARMUP_STEPS))
    row = next(row for row in make_model_rows(choices, MODEL_SETTINGS) if row.name == name)
    return Measured(row, [answer.measurement] if answer.measurement else [], answer.failure, answer.absence)


def test_a_peer_that_draws_other_masks_differs(monkeypatch):
    """torch_remat without the hook that its documentation asks for."""
    pytest.importorskip("torch_remat")
    monkeypatch.setattr(peers._RandomState, "restore", lambda *_: None)
    choices = ModelChoices("compared_models:encoder", "cpu")
    none, remat = summarise([measured(name, choices) for name in ("none", TORCH_REMAT)], None)
    assert (remat.agreement.equal, remat.agreement.first_different_step) == (False, 1)
    assert make_verdict([none, remat]).startswith("torch_remat differs from none from step 1 on (loss by +0).")


def test_other_gradients_with_the_same_losses_and_weights_are_told():
    """AdamW's first step follows the signs of gradients, and hardly their sizes."""
    choices = ModelChoices("compared_models:encoder", "cpu")
    none, full = measured("none", choices), measured("full", choices)
    (trained,) = full.rounds
    other = ("0" * 64, *trained.gradients_sha256[1:])
    full.rounds = [dataclasses.replace(trained, gradients_sha256=other)]
    found = summarise([none, full], None)[1].agreement
    assert (found.equal, found.first_different_step) == (False, 1)


def test_a_package_that_is_not_installed_is_left_out_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_remat", None)  # as where it is not installed
    item = measured(TORCH_REMAT, ModelChoices("compared_models:encoder", "cpu"))
    assert (item.absence, item.failure) == ("the package torch_remat is not installed", None)
    assert summarise([item], None) == ()


def test_a_model_that_needs_values_is_measured_and_not_predicted():
    choices = ModelChoices("compared_models:looks", "cpu")
    items = [measured(name, choices) for name in ("none", "full", SAC)]
    none, full = summarise(items, 15)
    assert (none.saved.predicted, full.agreement.equal) == (None, True)
    (note,) = items[0].rounds[0].notes
    assert note.startswith("bytes are not predicted, since the model does not run without values (")
    assert items[2].absence == "Looks has no list of alike modules, the layers that it goes around"
    assert items[0].rounds[0].model.tokens == 15
    model, batch = compared_models.looks()
    assert none.saved.measured == saved(model, [batch])


def test_the_names_of_settings_are_those_of_recompute():
    assert MODEL_SETTINGS == SETTINGS
    rows = make_model_rows(ModelChoices("x"), ["full", "none", "full"])
    assert [row.name for row in rows] == ["none", "full", *PEERS]
    assert [row.is_reference for row in rows] == [True] + [False] * (1 + len(PEERS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compared_models:encoder", "--config", "tiny"],
            "--config and --model: a model of your own takes no config; give one of the two",
        ),
        (
            ["compared_models:encoder", "--model.num-layers", "3"],
            "--model.num-layers: not with --model; `megaselect compare --model FACTORY --help` lists the flags",
        ),
        (
            ["compared_models:encoder", "--settings", "all"],
            "--settings 'all': unknown setting; with --model a setting is none, selective, attention or full",
        ),
        (["compared_models:encoder", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["compared_models:encoder", "--seed", "-1"], "--seed -1: must be at least 0"),
        (
            ["compared_models:encoder", "--warmup", "1"],
            "--warmup 1: must be at least 2 with --model: the ledger watches the first, and a plan records the second",
        ),
        (
            ["compared_models:encoder", "--batch-size", "0"],
            "--batch-size: 0: must be a whole number of at least 1; --help lists the flags",
        ),
        (
            ["compared_models:encoder", "--batch-size", "2", "--wandb", "disabled"],
            "--batch-size: compared_models:encoder returns a batch of its own, whose size is set there",
        ),
        (
            ["compared_models:raises", "--wandb", "disabled"],
            "--model compared_models:raises: it raises ValueError: no weights here",
        ),
        (
            ["compared_models:encode", "--wandb", "disabled"],
            "--model compared_models:encode: encode is not there in compared_models; did you mean encoder?",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_left(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["compare", "--model", *arguments, "--out", "out"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {message}"
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_run_on_its_batch_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--settings", "none", "--rounds", "1", "--device", "cpu", "--wandb", "disabled", "--out", "out"]
    assert main(["compare", "--model", "compared_models:wrong_batch", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: no setting trains; none: ")
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_torch_in_80_columns():
    code = "import sys; from megaselect.cli.main import main\ntry: main(['compare', '--model', 'x', '--help'])\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "80"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    *lines, torch_is_there = child.stdout.splitlines()
    assert (child.stderr, torch_is_there) == ("", "False")
    assert max(map(len, lines)) <= 80
    assert "(default: all)" in child.stdout


def test_the_untouched_model_has_no_plan(monkeypatch):
    """none is what the others are held against."""
    touched = []
    monkeypatch.setattr("megaselect.comparison.any_model.recompute", lambda model, name: touched.append(name))
    measured("none", ModelChoices("compared_models:encoder", "cpu"))
    assert touched == []
