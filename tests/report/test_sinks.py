"""Several sinks as one, and how they hear of a run that an error ends."""

import pytest

from megaselect.report.sinks import Sinks
from megaselect.training.events import failures_told


class Recorder:
    """Keeps what it hears of a failure; one that is broken raises an error of its own."""

    def __init__(self, broken=False):
        self.broken, self.heard = broken, []

    def fail(self, reason):
        self.heard.append(reason)
        if self.broken:
            raise OSError("disk full")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such thing\nand a second line"), "ValueError: no such thing"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_every_sink_hears_of_the_error_which_goes_on_its_way(error, reason):
    sinks = [Recorder(broken=True), Recorder()]
    with pytest.raises(type(error)) as raised, failures_told(Sinks(sinks)):
        raise error
    assert raised.value is error
    assert [sink.heard for sink in sinks] == [[reason], [reason]]


def test_a_run_without_an_error_is_no_failure():
    sink = Recorder()
    with failures_told(sink):
        pass
    assert sink.heard == []
