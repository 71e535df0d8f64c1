"""What ranks do for the tests of this folder: short trainings, whose every number comes back to be compared."""

from dataclasses import dataclass

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from megaselect.build import build_distributed
from megaselect.config import Config
from megaselect.data.sampler import split_windows
from megaselect.devices import resolve_placement
from megaselect.distributed.launch import joined_ranks
from megaselect.distributed.ranks import Ranks
from megaselect.ledger import record
from megaselect.models.gpt.apply_plan import applied_plan
from megaselect.training.evaluate import evaluate
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState
from megaselect.training.step import Stepper

# Rows that no number of ranks divides: 97 + padding, 3 x 24, 24, 40.
MODEL = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "ffn_hidden_size": 40,
    "seq_length": 12,
    "vocab_size": 97,
    "attention_dropout_p": 0.1,
    "hidden_dropout_p": 0.1,
}
TRAINING = {"micro_batch_size": 2, "global_batch_size": 24, "device": "cpu", "lr": 1e-2, "clip_grad": 0.5}
STEPS = 8


@dataclass
class Source:
    """Windows of random tokens, a function of the sample index; those in `poisoned` hold a token that spoils a step."""

    num_windows: int = 29
    vocab_size: int = MODEL["vocab_size"]
    seq_length: int = MODEL["seq_length"]

    def batch(self, first, size):
        """See BatchSource.batch."""
        generator = torch.Generator()
        rows = [
            torch.randint(0, self.vocab_size, (self.seq_length + 1,), generator=generator.manual_seed(sample))
            for sample in range(first, first + size)
        ]
        return split_windows(torch.stack(rows), first)


def make_config(parallel=None, **sections):
    """The model above, with other settings by section."""
    return Config.from_dict(
        {
            "model": {**MODEL, **sections.pop("model", {})},
            "training": {**TRAINING, **sections.pop("training", {})},
            "parallel": {"timeout": "60s", **(parallel or {})},
            **sections,
        }
    )


class Trial:
    """A model, its optimizer and its steps, on one rank or alone."""

    def __init__(self, config, ranks):
        self.config, self.ranks, self.state = config, ranks, RunState(0, 0)
        placement = resolve_placement(config.training)
        self.model, self.automatic, self.spread = build_distributed(config, placement, ranks)
        self.optimizer = MixedPrecisionAdamW(self.model, config.training, self.spread)
        source = Source(vocab_size=config.model.vocab_size, seq_length=config.model.seq_length)
        self.stepper = Stepper(config.training, self.model, self.optimizer, source, ranks=ranks)

    def train(self, steps=STEPS):
        """[(loss, gradient norm, learning rate, skipped)] of as many steps."""
        log = []
        for _ in range(steps):
            outcome, self.state = self.stepper.step(self.state)
            log.append((outcome.loss, outcome.grad_norm, outcome.learning_rate, outcome.skipped))
        return log

    def pieces(self):
        """Name -> (rows, tensor): weights, moments, master weights, of this rank."""
        pieces = {**self.optimizer.weight_pieces(), **self.optimizer.pieces()}
        return {name: (piece.rows, piece.tensor.detach().clone()) for name, piece in pieces.items()}


def training(config_of, steps=STEPS):
    """Log, pieces, bytes saved for backward in a first micro-batch, and the loss of an evaluation."""
    config = make_config(**config_of)
    with joined_ranks(60) as ranks:
        trial = Trial(config, ranks)
        saved = saved_bytes(trial)
        log = trial.train(steps)
        loss = evaluate(trial.model, Source(), 29, 2, ranks=ranks)
        return log, trial.pieces(), saved, loss


def held_bytes(config_of):
    """Weights, gradients at the end of a step, master weights of their own, moments and step counts: of this rank."""
    config = make_config(**config_of)
    with joined_ranks(60) as ranks:
        trial = Trial(config, ranks)
        optimizer, held = trial.optimizer, {}
        adam_step = optimizer._adam.step

        def watched_step():
            held["gradients"] = sum(master.grad.nbytes for master in optimizer.masters.values())
            adam_step()

        optimizer._adam.step = watched_step
        trial.train(1)
        weights = {piece.tensor.data_ptr(): piece.tensor.nbytes for piece in optimizer.weight_pieces().values()}
        state = {name: piece.tensor for name, piece in optimizer.pieces().items()}
        masters = [tensor for name, tensor in state.items() if name.startswith("master.")]
        held["weights"] = sum(weights.values())
        held["master_weights"] = sum(each.nbytes for each in masters if each.data_ptr() not in weights)
        held["optimizer"] = sum(each.nbytes for name, each in state.items() if not name.startswith("master."))
        return held


def peak_bytes(cases):
    """Of each config the most that a step holds after the first one, by torch's MemTracker, on this rank."""
    with joined_ranks(60) as ranks:
        return [_peak_bytes(Trial(make_config(**config_of), ranks)) for config_of in cases]


def planned(config_of):
    """With recompute auto: what a rank runs, the peak that is predicted for it, and the one that it has."""
    with joined_ranks(60) as ranks:
        trial = Trial(make_config(**config_of), ranks)
        plan = applied_plan(trial.model)
        return plan, trial.automatic.peak.bytes, _peak_bytes(trial)


def _peak_bytes(trial):
    trial.train(1)
    tracker, backward = MemTracker(), trial.optimizer.backward
    tracker.track_external(trial.model, trial.optimizer._adam, *trial.optimizer.masters.values())

    def watched_backward(loss):
        backward(loss)
        tracker.reset_mod_stats()  # it wants to be told where a new forward begins

    trial.optimizer.backward = watched_backward
    with tracker:
        trial.train(1)
    return sum(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())


def saved_bytes(trial):
    """By the ledger, of this rank's first micro-batch, which leaves no trace."""
    batch = trial.stepper.batch(trial.state, trial.ranks.rank)
    with record(trial.model) as ledger:
        loss = trial.model(batch.tokens, batch.targets, batch.sample_index)
    loss.backward()
    trial.optimizer.abandon_step()
    return ledger.total, ledger.by_layer()


def alone(config_of, steps=STEPS):
    """The same in this process, as one rank."""
    trial = Trial(make_config(**config_of), Ranks())
    saved = saved_bytes(trial)
    log = trial.train(steps)
    return log, trial.pieces(), saved, evaluate(trial.model, Source(), 29, 2)
