"""Our model under every recompute setting and attention choice of a config, on real batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from megaselect.build import build_model
from megaselect.config import Config
from megaselect.data.sampler import Batch
from megaselect.errors import DeviceError, RecomputeError
from megaselect.models.gpt.model import GPT
from megaselect.prediction.flops import micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes, saved_tensors
from megaselect.recomputation.plan import RecomputePlan, no_recompute
from megaselect.verification.closeness import Exact
from megaselect.verification.differences import differences
from megaselect.verification.dropout_sites import WINDOW_POSITIONS, MaskFunction, sites_of
from megaselect.verification.expected import counted_operators, expected_counts, faults_in
from megaselect.verification.masks import MaskCheck
from megaselect.verification.report import Check, Outcome, Report, Subject, check, merged
from megaselect.verification.settings import VerifiedSetting, attention_choices, settings_of, with_attention
from megaselect.verification.step import Step, run_step

BITS, FP64, MASKS, BYTES, RERUN, GRADIENTS = "same bits", "near fp64", "masks", "bytes", "runs again", "gradients"
CHECKS = (BITS, FP64, MASKS, BYTES, RERUN, GRADIENTS)

Progress = Callable[[str], None]


def verify_config(config: Config, batches: Sequence[Batch], progress: Progress = lambda title: None) -> Report:
    """Each batch through every mode and module set of each attention choice, compared with `none` of that choice.

    batches: micro-batches of the config's data, on any device. progress: called with the title of what comes next.
    Raises MegaselectError where the config's model cannot be built at all.
    """
    found: dict[tuple[str, str], list[Subject]] = {}
    for batch in batches:
        for subject in _subjects(config, batch, progress):
            found.setdefault((subject.attention, subject.name), []).append(subject)
    return Report(tuple(_over_batches(subjects) for subjects in found.values()), tuple(_notes(config, len(batches))))


def _subjects(config: Config, batch: Batch, progress: Progress) -> Iterator[Subject]:
    exact = None
    for attention in attention_choices(config.model):
        chosen = with_attention(config, attention)
        progress(f"{attention}, none")
        try:
            model = build_model(chosen)
            settings = settings_of(chosen, model, config.recompute)
        except (DeviceError, RecomputeError) as error:
            if attention == config.model.attention:
                raise
            yield Subject("every setting", attention, left_out=str(error))
            continue
        choice = _Choice(chosen, model, batch)
        exact = exact or Exact(config, model, batch, choice.reference.gradients)
        for turn, setting in enumerate(settings):
            progress(f"{attention}, {setting.name}")
            yield choice.subject(setting, turn, exact)


class _Choice:
    """One attention choice: its model, its batch, and what `none` gives."""

    def __init__(self, config: Config, model: GPT, batch: Batch) -> None:
        weight = next(model.parameters())
        tensors = (batch.tokens, batch.targets, batch.sample_index)
        self.config, self.model = config, model
        self.batch = Batch(*(tensor.to(weight.device) for tensor in tensors))
        self.shape = LayerShape.of(config, weight.element_size(), len(batch.tokens))
        self.function = MaskFunction(config.training.seed, batch.sample_index)
        self.none = no_recompute(config.model.num_layers)
        self.reference = run_step(model, self.batch, self.none)
        self.repeats = True

    def subject(self, setting: VerifiedSetting, turn: int, exact: Exact) -> Subject:
        """Every check of one setting."""
        attention, plan = self.shape.attention, setting.plan
        if setting.left_out:
            return Subject(setting.name, attention, left_out=setting.left_out)
        masks = MaskCheck(sites_of(self.config), self.function, turn)
        step = run_step(self.model, self.batch, plan, masks)
        checks = [
            self._bits(step, plan),
            *self._near_fp64(step, plan, exact),
            check(MASKS, [*masks.faults, *masks.missing()], "" if masks.sites else "no dropout, no masks"),
            check(BYTES, self._bytes(step, plan)),
            check(RERUN, self._reruns(step, plan)),
            check(GRADIENTS, self._without_gradient(step)),
        ]
        return Subject(setting.name, attention, tuple(checks), figures=self._figures(step, plan))

    def _bits(self, step: Step, plan: RecomputePlan) -> Check:
        """Against `none`; `none` against its own first run."""
        found = list(differences(step.values, self.reference.values))
        if plan == self.none and found:
            self.repeats = False
            return check(BITS, [f"none does not repeat itself: {found[0]}"])
        if not self.repeats:
            return Check(BITS, Outcome.NOT_CHECKED, "none does not repeat itself, so there is nothing to compare with")
        return check(BITS, found)

    def _near_fp64(self, step: Step, plan: RecomputePlan, exact: Exact) -> Iterator[Check]:
        if plan == self.none and self.shape.attention != "unfused":
            yield check(FP64, exact.faults(step.gradients), exact.covered(step.gradients))

    def _bytes(self, step: Step, plan: RecomputePlan) -> Iterator[str]:
        predicted = {(row.layer, row.name): row.bytes for row in saved_tensors(self.shape, plan)}
        for place in [*predicted, *(step.saved.keys() - predicted.keys())]:
            expected, measured = predicted.get(place, 0), step.saved.get(place, 0)
            if expected != measured:
                where = f"{place[0] or 'outside the layers'}, {place[1]}"
                yield f"{where}: {expected:,} bytes predicted, {measured:,} measured"

    def _reruns(self, step: Step, plan: RecomputePlan) -> Iterator[str]:
        counts = counted_operators(step.rerun.calls) + step.inside
        yield from faults_in(counts, expected_counts(self.shape, plan))
        predicted = self._rerun_flops(plan)
        if step.rerun.flops != predicted:
            yield f"{step.rerun.flops:,} FLOPs ran again, {predicted:,} predicted"

    def _rerun_flops(self, plan: RecomputePlan) -> int:
        """Without what an operator does again inside itself, as the loss in chunks does in every mode."""
        return micro_batch_flops(self.shape, plan).hardware - micro_batch_flops(self.shape, self.none).hardware

    def _without_gradient(self, step: Step) -> Iterator[str]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and step.values[name] is None:
                yield f"{name} is trainable and has no gradient"

    def _figures(self, step: Step, plan: RecomputePlan) -> dict[str, object]:
        loss = step.values["loss"]
        return {
            "loss": None if loss is None else loss.item(),
            "saved_bytes": step.saved_total,
            "predicted_saved_bytes": saved_bytes(self.shape, plan),
            "rerun_flops": step.rerun.flops,
            "rerun": dict(step.rerun.calls + step.inside),
        }


def _over_batches(subjects: Sequence[Subject]) -> Subject:
    """One for all batches: figures of the first, and of each check the worst."""
    first = subjects[0]
    checks = tuple(
        merged(names[0].name, names) for names in zip(*(subject.checks for subject in subjects), strict=True)
    )
    return Subject(first.name, first.attention, checks, first.left_out, first.figures)


def _notes(config: Config, batches: int) -> Iterator[str]:
    model, training = config.model, config.training
    sequence = model.seq_length
    many = f"{batches} batches" if batches > 1 else "one batch"
    yield f"{many} of {training.micro_batch_size} samples of {sequence} tokens; attentions are held against fp64"
    if model.attention_dropout_p or model.hidden_dropout_p:
        window = f"the last {WINDOW_POSITIONS} positions" if sequence > WINDOW_POSITIONS else "all positions"
        yield (
            f"masks: every site in forward, second run and backward, over {window}; at hidden sites of all samples, in "
            "attention of all heads and one sample, another one in each layer and setting"
        )
    if training.compile:
        yield "layers were verified uncompiled: a compiler hides which operators run again"
    if model.attention_dropout_p:
        yield "sdpa is left out: it has no dropout"
