"""Commands have flags for the settings that they use: what they read of a config is watched, and held against those."""

import sys

import pytest

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.main import main
from megaselect.config import Config, iter_settings
from megaselect.config.section import Section

SMALL = (
    "--model.num-layers 1 --model.hidden-size 32 --model.num-attention-heads 4 --model.seq-length 16 "
    "--training.micro-batch-size 2 --training.global-batch-size 4"
)
# Read by the schema alone, which gives it to others: the heads of dropout and vocabulary, and what must fit another.
BY_THE_SCHEMA = {"model.vocab_size", "model.dropout_p", "training.global_batch_size"}
NOT_HEEDED_BY_VERIFY = {"training.compile"}  # which it reads to say so
OWN_OF_ESTIMATE = {"training.device", "recompute.memory"}  # which it has flags of its own for


@pytest.fixture
def read(monkeypatch):
    """The settings that are read outside megaselect.config, from now on."""
    sections = {field.annotation: section for section, field in Config.model_fields.items()}
    names, found = {name for name, _ in iter_settings()}, set()
    plain = Section.__getattribute__

    def watched(self, name):
        setting = f"{sections.get(type(self))}.{name}"
        reader = sys._getframe(1).f_globals["__name__"]
        if setting in names and reader.startswith("megaselect.") and not reader.startswith("megaselect.config."):
            found.add(setting)
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", watched)
    return found


def test_estimate_has_flags_for_what_it_reads_and_no_others(read, capsys):
    for line in ("", "--recompute auto --memory 100MiB --json", "--recompute full --recompute-layers 0-1"):
        assert main(["estimate", *line.split(), "--device", "h100-80gb"]) == 0
    assert (read - OWN_OF_ESTIMATE) | BY_THE_SCHEMA == SETTINGS_OF_COMMAND["estimate"]


def test_verify_has_flags_for_what_it_reads_and_no_others(read, capsys):
    assert main(["verify", *SMALL.split(), "--model.dropout-p", "0", "--device", "cpu"]) == 0
    of_other_modes = {name for name in SETTINGS_OF_COMMAND["verify"] if name.startswith("recompute.")}
    heeded = read - NOT_HEEDED_BY_VERIFY
    assert heeded | of_other_modes | BY_THE_SCHEMA == SETTINGS_OF_COMMAND["verify"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "estimate --exit-after 8h --wandb online",
            "--exit-after: megaselect estimate does not use it; megaselect train does",
        ),
        ("estimate --wandb online", "--wandb: megaselect estimate does not use it; megaselect train and compare do"),
        (
            "verify --training.lr 3",
            "--training.lr: megaselect verify does not use it; megaselect train and compare do",
        ),
        (
            "compare --no-training.keep_best",
            "--no-training.keep-best: megaselect compare does not use it; megaselect train does",
        ),
        (
            "estimate --training.exit-after 8h",
            "--training.exit-after: megaselect estimate does not use it; megaselect train does",
        ),
        (
            "verify --training.exit-afte 8h",
            "unknown flag --training.exit-afte; --help lists the flags",
        ),
    ],
)
def test_a_flag_of_another_command_is_refused_and_that_command_named(line, message, capsys):
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
