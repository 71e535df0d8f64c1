"""Measurements by hand, and rows to go with them."""

from dataclasses import replace

from megaselect.comparison.measurement import TrainMeasurement
from megaselect.comparison.result import PeakBytes, SavedBytes, StaticBytes, StepSample, TimelinePoint
from megaselect.comparison.settings import make_rows
from megaselect.config import Config

CONFIG = Config.from_dict(
    {"model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 24, "vocab_size": 128}}
)


def row(name, config=CONFIG):
    """The row that the name means; a reference that comes with it is left out."""
    return make_rows(config, [name])[-1]


def measurement(backward_ms=(20, 40), *, number=1, losses=(8.0, 7.5, 7.0), sha="aa", saved=1000, **more):
    """One warm-up step, then a timed step for each of backward_ms: forward 10 ms, optimizer 5, nothing else."""
    samples = tuple(
        StepSample(number, step, (ms + 15) / 1e3, 0.010, ms / 1e3, 0.005) for step, ms in enumerate(backward_ms, 2)
    )
    made = TrainMeasurement(
        device="cpu, 1 thread",
        dtype="float32",
        parameters=10,
        peak_flops=None,
        torch_version="2.13.0",
        model_flops=3000,
        hardware_flops=4000,
        saved=SavedBytes(saved, saved, {"layers.0": saved}, {"layers.0": saved}, {"probs": saved}, {"probs": saved}),
        static=StaticBytes(40, 40, 0, 80),
        peak=PeakBytes(5000, None, 9000),
        predicted_peak_bytes=5000,
        samples=samples,
        losses=losses,
        grad_norms=tuple(1.0 for _ in losses),
        weights_sha256=sha,
        timeline=(TimelinePoint(0.0, 10), TimelinePoint(0.1, 20)),
    )
    return replace(made, **more)
