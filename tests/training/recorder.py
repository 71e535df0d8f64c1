"""Callbacks for tests of training from Python, and what two runs' metrics must share."""

from megaselect import Callback

EXACT = ("step", "samples", "tokens", "loss", "grad_norm", "lr", "saved_bytes", "skipped_steps", "valid_loss")


class Recorder(Callback):
    """Keeps every event, in order, as (name, what was told)."""

    def __init__(self):
        self.events = []

    def on_start(self, header):
        self.events.append(("start", header))

    def on_saved(self, report):
        self.events.append(("saved", report))

    def on_step(self, metrics):
        self.events.append(("step", metrics))

    def on_evaluation(self, step, loss):
        self.events.append(("evaluation", (step, loss)))

    def on_note(self, text):
        self.events.append(("note", text))

    def on_finish(self, summary):
        self.events.append(("finish", summary))

    def on_fail(self, reason):
        self.events.append(("fail", reason))

    def told(self, name):
        return [told for kind, told in self.events if kind == name]

    @property
    def names(self):
        return [name for name, _ in self.events]


class At(Callback):
    """Calls act(self) after one step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step(self, metrics):
        if metrics["step"] == self.step:
            self.act(self)


def exact(lines):
    """What of metrics.jsonl is the same in every run of the same config."""
    return [{name: line[name] for name in EXACT if name in line} for line in lines]
