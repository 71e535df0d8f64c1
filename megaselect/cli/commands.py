"""Which settings each command uses, and so has flags for. A config file may hold them all, for every command."""

from __future__ import annotations

from megaselect.config import iter_settings


def _select(*names: str, without: tuple[str, ...] = ()) -> frozenset[str]:
    """Settings by their dotted names, or whole sections by theirs."""
    known = [name for name, _ in iter_settings()]
    chosen = {name for name in known if name in names or name.partition(".")[0] in names}
    assert chosen.issuperset(name for name in (*names, *without) if "." in name), "a setting has another name"
    return frozenset(chosen.difference(without))


# What comes to a command from a training run but decides nothing in it is left out: how often a comparison would save,
# how weights that are never made would begin, whether layers are compiled, which are verified uncompiled. A setting
# that must fit one of these, as the global batch must fit the micro-batch, is among them.
SETTINGS_OF_COMMAND = {
    "train": _select("model", "data", "training", "recompute", "parallel", "logging"),
    "estimate": _select(
        *("model", "recompute", "data.prefix", "data.blend", "data.tokenizer", "data.vocab_size"),
        *("training.micro_batch_size", "training.global_batch_size", "training.dtype"),
        *("training.compile", "training.loss_chunk_tokens"),
        *("parallel.sharding", "parallel.replicas", "parallel.reduction"),
        # The command has a flag of its own for memory; weights are never made.
        without=("recompute.memory", "model.init_std", "model.layernorm_epsilon"),
    ),
    "verify": _select(
        *("model", "recompute", "data", "training.micro_batch_size", "training.global_batch_size", "training.dtype"),
        *("training.device", "training.seed", "training.deterministic", "training.loss_chunk_tokens"),
        without=("data.prefetch",),
    ),
    "compare": _select(
        *("model", "recompute", "data", "training", "logging.wandb", "logging.wandb_project", "logging.wandb_group"),
        without=(
            *("data.prefetch", "training.run_dir", "training.resume", "training.exit_after", "training.sample_tokens"),
            *("training.eval_interval", "training.eval_samples", "training.save_interval", "training.keep_checkpoints"),
            *("training.keep_best", "training.on_nonfinite", "training.on_oom"),
        ),
    ),
}


def commands_with(setting: str) -> list[str]:
    """The commands that have a flag for a setting."""
    return [command for command, settings in SETTINGS_OF_COMMAND.items() if setting in settings]
