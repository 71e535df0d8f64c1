from measurements import measurement, row

from megaselect.comparison.summary import Measured, summarise
from megaselect.comparison.verdict import make_verdict

MIB = 2**20


def verdict(**rounds_or_failures):
    items = []
    for name, outcome in rounds_or_failures.items():
        item = Measured(row(name.replace("_", " ")))
        if isinstance(outcome, str):
            item.failure = outcome
        else:
            item.rounds = outcome
        items.append(item)
    return make_verdict(summarise(items, 1))


def steps(backward_ms, saved_mib, **more):
    return [measurement((backward_ms, backward_ms), saved=saved_mib * MIB, **more)]


def test_equal_bits_the_leanest_the_free_and_the_baseline():
    found = verdict(none=steps(45, 100), all=steps(47, 50), full=steps(63, 20), fused_none=steps(30, 60))
    assert found == (
        "Every recompute setting trained bitwise equal to the setting `none` under the same attention: losses, "
        "gradient norms and final weights over 3 steps. With full, a micro-batch saves 20.00 MiB for backward, 80% "
        "less than with none, and a step takes 1.30 times as long. With all, a micro-batch saves 50.00 MiB for "
        "backward, 50% less than with none, and a step takes 1.03 times as long. With fused none, a micro-batch saves "
        "60.00 MiB for backward, 40% less than with none, and a step takes 0.75 times as long, without computing "
        "anything again."
    )


def test_the_leanest_is_named_once_where_it_is_as_fast():
    assert verdict(none=steps(45, 100), full=steps(45, 20)).count("With full") == 1


def test_a_setting_that_differs_is_named_with_the_step_and_the_loss():
    found = verdict(none=steps(45, 100), all=steps(45, 50), full=steps(45, 20, losses=(8.0, 7.625, 7.0), sha="bb"))
    assert found.startswith("full differs from none from step 2 on (loss by +0.125). With full")
    assert "bitwise" not in found


def test_other_weights_after_equal_steps_are_a_difference():
    found = verdict(none=steps(45, 100), full=steps(45, 20, sha="bb"))
    assert found.startswith("full ends with other weights than none.")


def test_a_setting_that_does_not_repeat_itself_proves_nothing():
    found = verdict(none=steps(45, 100) + steps(45, 100, sha="bb"), full=steps(45, 20) * 2)
    assert found.startswith("none did not repeat its own bits from round to round.")
    assert "bitwise" not in found


def test_failures_and_rough_times_are_told():
    rough = [measurement((20, 100), saved=100 * MIB)]
    assert verdict(none=steps(45, 100), fused_none=rough, all="out of memory", full="no") == (
        "Times are rough: of the steps of fused none, the middle ones took from 51 to 99 ms; more --rounds, or a "
        "quieter machine, make them firm. all and full did not train."
    )
