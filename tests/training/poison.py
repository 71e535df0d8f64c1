"""Makes a real module misbehave for one sample: a function of the sample index, as everything in a step is."""

import torch

from megaselect.training import run


def at_sample(model, path, sample, act):
    """act(output) takes the place of the output of the module at `path` wherever the sample is in the micro-batch."""
    current = []

    def remember(_, inputs):
        current[:] = inputs[2].tolist() if len(inputs) > 2 else []  # an evaluation has no sample indices

    model.register_forward_pre_hook(remember)
    model.get_submodule(path).register_forward_hook(lambda _, __, output: act(output) if sample in current else None)


def in_runs(monkeypatch, path, sample, act):
    """The same for every model that a run builds from now on."""
    build = run.build_distributed

    def build_poisoned(*settings):
        model, *others = build(*settings)
        at_sample(model, path, sample, act)
        return model, *others

    monkeypatch.setattr(run, "build_distributed", build_poisoned)


def nan_in_output(output):
    """One NaN."""
    changed = output.clone()
    changed.view(-1)[5] = float("nan")
    return changed


def inf_in_gradient(output):
    """One infinity in the gradient, with a finite output."""

    def change(gradient):
        changed = gradient.clone()
        changed.view(-1)[7] = float("inf")
        return changed

    if torch.is_grad_enabled():
        output.register_hook(change)
    return output
