"""What to take from a comparison, in a few sentences. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from megaselect.comparison.result import Agreement, SettingResult, TrainedSetting
from megaselect.comparison.step_times import slowdown
from megaselect.units import size

ROUGH = 1.25  # 80 over 20 % quantile of a setting's own steps
SAME_SPEED = 1.05  # a step that takes so much longer is not called slower: rounds differ by as much


def make_verdict(settings: Sequence[SettingResult]) -> str:
    """Whether the settings trained alike, what the leanest and the free ones save, what no recomputation would.

    Of a model of anybody's also whether bytes are those predicted, and what the peers save.
    """
    trained = [setting for setting in settings if isinstance(setting, TrainedSetting)]
    sentences = [_agreement(trained), *_predictions(trained), *_trade(trained), *_peers(trained), _failures(settings)]
    return " ".join(sentence for sentence in sentences if sentence)


def _agreement(trained: Sequence[TrainedSetting]) -> str:
    compared = [(setting.name, setting.agreement) for setting in trained if setting.agreement is not None]
    unsteady = [setting.name for setting in trained if setting.rounds_equal is False]
    differing = [_difference(name, agreement) for name, agreement in compared if not agreement.equal]
    if unsteady:
        return f"{_list(unsteady)} did not repeat {_their(unsteady)} own bits from round to round."
    if differing:
        return " ".join(differing)
    if not compared:
        return ""
    steps = len(trained[0].losses)
    if trained[0].attention is None:
        return (
            f"Every row trained bitwise equal to the untouched model, `none`: losses, gradients and final weights over "
            f"{steps} steps."
        )
    return (
        f"Every recompute setting trained bitwise equal to the setting `none` under the same attention: losses, "
        f"gradient norms and final weights over {steps} steps."
    )


def _difference(name: str, agreement: Agreement) -> str:
    step = agreement.first_different_step
    if step is None:
        return f"{name} ends with other weights than {agreement.reference}."
    difference = agreement.loss_differences[step - 1]
    by = "" if difference is None else f" (loss by {difference:+.3g})"
    return f"{name} differs from {agreement.reference} from step {step} on{by}."


def _trade(trained: Sequence[TrainedSetting]) -> list[str]:
    """The leanest setting, the leanest that is as fast, and the leanest without recomputation."""
    base = next((setting for setting in trained if setting.recompute["mode"] == "none"), None)
    if base is None:
        return []
    alike = [
        setting
        for setting in trained
        if setting is not base and _is_same_training(setting) and not setting.is_peer and _saved(setting, base) > 0
    ]
    recomputing = [setting for setting in alike if setting.recompute["mode"] != "none"]
    free = [setting for setting in recomputing if slowdown(setting, base) <= SAME_SPEED]
    without = [setting for setting in alike if setting.recompute["mode"] == "none"]
    chosen = {setting.name: setting for setting in (min(group, key=_kept) for group in (recomputing, free) if group)}
    sentences = [_saving(setting, base) for setting in chosen.values()]
    if without:
        leanest = min(without, key=_kept)
        sentences.append(_saving(leanest, base, ", without computing anything again"))
    return [_roughness(trained), *sentences]


def _is_same_training(setting: TrainedSetting) -> bool:
    """A config's row with a note is another training; a model's is not, whatever is noted of it."""
    return setting.attention is None or setting.note is None


def _predictions(trained: Sequence[TrainedSetting]) -> list[str]:
    """Of a model of anybody's: a config's predictions have a gate of their own."""
    own = [setting for setting in trained if setting.attention is None and setting.saved.predicted is not None]
    missed = [setting for setting in own if setting.saved.predicted != setting.saved.measured]
    if own and not missed:
        where = "" if len(own) == len(trained) else ", where they were"
        return [f"Saved bytes are those predicted, to the byte{where}."]
    return [
        f"{setting.name} saves {setting.saved.measured:,} bytes, and {setting.saved.predicted:,} were predicted."
        for setting in missed
    ]


def _peers(trained: Sequence[TrainedSetting]) -> list[str]:
    """What each saves, and how long a step takes."""
    base = next((setting for setting in trained if setting.recompute["mode"] == "none"), None)
    peers = [setting for setting in trained if setting.is_peer]
    if base is None or not peers:
        return []
    each = [f"{one.name} saves {_difference_to(base, one)} in {_times(one, base)} times the time" for one in peers]
    return [f"Beside them, {_list(each)}."]


def _difference_to(base: TrainedSetting, peer: TrainedSetting) -> str:
    share = _saved(peer, base)
    return f"{abs(share):.0%} {'less' if share >= 0 else 'more'}"


def _saving(setting: TrainedSetting, base: TrainedSetting, more: str = "") -> str:
    batch = "micro-batch" if setting.attention is not None else "batch"
    return (
        f"With {setting.name}, a {batch} saves {size(_kept(setting))} for backward, {_saved(setting, base):.0%} "
        f"less than with {base.name}, and a step takes {_times(setting, base)} times as long{more}."
    )


def _times(setting: TrainedSetting, base: TrainedSetting) -> str:
    """With as many digits as the steps are steady."""
    ratio = slowdown(setting, base)
    return f"about {ratio:.1f}" if _is_rough(setting) or _is_rough(base) else f"{ratio:.2f}"


def _is_rough(setting: TrainedSetting) -> bool:
    return setting.speed.step_seconds.q80 > ROUGH * setting.speed.step_seconds.q20


def _roughness(trained: Sequence[TrainedSetting]) -> str:
    """A warning where steps of one setting differ so much that ratios of times say little."""
    worst = max(trained, key=lambda setting: setting.speed.step_seconds.q80 / setting.speed.step_seconds.q20)
    step = worst.speed.step_seconds
    if not _is_rough(worst):
        return ""
    return (
        f"Times are rough: of the steps of {worst.name}, the middle ones took from {1e3 * step.q20:,.0f} to "
        f"{1e3 * step.q80:,.0f} ms; more --rounds, or a quieter machine, make them firm."
    )


def _failures(settings: Sequence[SettingResult]) -> str:
    failed = [setting.name for setting in settings if setting.failure is not None]
    return f"{_list(failed)} did not train." if failed else ""


def _kept(setting: TrainedSetting) -> int:
    return setting.saved.measured


def _saved(setting: TrainedSetting, base: TrainedSetting) -> float:
    """As a share of what the base saves, which is nothing where a model has nothing to save."""
    return 1 - _kept(setting) / _kept(base) if _kept(base) else 0.0


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _their(names: Sequence[str]) -> str:
    return "its" if len(names) == 1 else "their"
