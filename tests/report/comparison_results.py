"""A small comparison with every kind of row, by hand: what a report shows of it can be computed by hand too."""

from dataclasses import replace

from megaselect.comparison.result import (
    Agreement,
    Comparison,
    Context,
    FailedSetting,
    ModelFacts,
    PeakBytes,
    SavedBytes,
    Speed,
    Spread,
    StepSample,
    TrainedSetting,
)
from megaselect.prediction.weights import StaticBytes

CONTEXT = Context(
    config_name="tiny",
    config={
        "model": {"num_layers": 2, "attention": "unfused", "attention_dropout_p": 0.1},
        "recompute": {"mode": "selective", "modules": ["softmax", "dropout"]},
        "training": {"lr": 3e-3},
    },
    device="cpu, 2 threads",
    dtype="float32",
    parameters=2_587_392,
    tokens_per_step=1000,
    peak_flops=None,
    steps=2,
    warmup_steps=1,
    rounds=2,
    torch_version="2.13.0",
    megaselect_version="0.1.0",
    python_version="3.11.2",
    date="2026-11-25T12:00:00Z",
    command="megaselect compare",
    commit=None,
)
MODULES = ["softmax", "dropout"]


def _speed(step_ms, recompute_ms=None):
    step = Spread(step_ms / 1000, step_ms / 2000, step_ms / 500)
    half = Spread(step_ms / 4000, step_ms / 8000, step_ms / 1000)
    seconds = None if recompute_ms is None else recompute_ms / 1000
    return Speed(step, half, step, half, seconds, 1e6 / step_ms, None, None)


def _samples(*milliseconds_by_round):
    """Step 1 is the warm-up, which is not timed."""
    return tuple(
        StepSample(number, step, ms / 1000, ms / 4000, ms / 2000, ms / 4000)
        for number, row in enumerate(milliseconds_by_round, start=1)
        for step, ms in enumerate(row, start=2)
    )


def _saved(count):
    layers = {"layers.0": count // 2, "layers.1": count // 2}
    names = {"probs": count}
    return SavedBytes(count, count, layers, layers, names, names)


STATIC = StaticBytes(100, 100, 0, 200)
NONE = TrainedSetting(
    name="none",
    attention="unfused",
    attention_dropout_p=0.1,
    recompute={"mode": "none", "modules": MODULES},
    model_flops=3000,
    hardware_flops=3000,
    saved=_saved(4096),
    static=STATIC,
    peak=PeakBytes(9000, None, 20000),
    predicted_peak_bytes=9000,
    speed=_speed(256),
    samples=_samples([256, 512], [128, 256]),
    losses=(8.5, 8.25, None),
    grad_norms=(1.5, 1.25, 1.0),
    weights_sha256="aa",
)
FULL = TrainedSetting(
    name="full",
    attention="unfused",
    attention_dropout_p=0.1,
    recompute={"mode": "full", "modules": MODULES},
    model_flops=3000,
    hardware_flops=4000,
    saved=_saved(1024),
    static=STATIC,
    peak=PeakBytes(5000, None, 16000),
    predicted_peak_bytes=5000,
    speed=_speed(320, recompute_ms=64),
    samples=_samples([320, 640], [320, 640]),
    losses=(8.5, 8.25, 8.125),
    grad_norms=(1.5, 1.25, 1.0),
    weights_sha256="aa",
    rounds_equal=True,
    agreement=Agreement("none", True, None, (0.0, 0.0, None)),
    largest_micro_batch=32,
)
FUSED_NONE = TrainedSetting(
    name="fused none",
    attention="fused",
    attention_dropout_p=0.1,
    recompute={"mode": "none", "modules": MODULES},
    model_flops=3000,
    hardware_flops=3000,
    saved=_saved(2048),
    static=STATIC,
    peak=PeakBytes(7000, 8000, 18000),
    predicted_peak_bytes=7000,
    speed=_speed(128),
    samples=_samples([128, 128], [128, 128]),
    losses=(8.5, 8.375, 8.25),
    grad_norms=(1.5, 1.25, 1.0),
    weights_sha256="bb",
    agreement=Agreement("none", False, 2, (0.0, 0.125, None)),
)
FAILED = FailedSetting(
    name="sdpa none",
    attention="sdpa",
    attention_dropout_p=0.0,
    recompute={"mode": "none", "modules": MODULES},
    note="attention dropout 0",
    failure="out of memory",
)
COMPARISON = Comparison(CONTEXT, (NONE, FULL, FUSED_NONE, FAILED), "full saves 3072 bytes.")


def _of_a_model(setting, name, is_peer=False):
    """The same row, of a model of anybody's."""
    return replace(
        setting,
        name=name,
        attention=None,
        attention_dropout_p=None,
        recompute={"mode": name},
        note="around each layer" if is_peer else None,
        is_peer=is_peer,
        model_flops=None,
        hardware_flops=None,
        predicted_peak_bytes=None,
        speed=replace(setting.speed, tokens_per_s=None),
        saved=replace(setting.saved, measured_per_layer={"": 24, "layers.0": setting.saved.measured - 24}),
    )


MODEL_COMPARISON = Comparison(
    replace(
        CONTEXT,
        config_name="models:net",
        config={"model": {"model": "models:net", "device": "cpu"}},
        tokens_per_step=None,
        model=ModelFacts("Net", 2, "4x16x32 float32", None, False, "torch.optim.AdamW, lr 0.0001"),
        notes=("HF checkpointing is left out: Net has no gradient_checkpointing_enable",),
    ),
    (_of_a_model(NONE, "none"), _of_a_model(FULL, "full"), _of_a_model(FUSED_NONE, "torch SAC", is_peer=True)),
    "full saves 3072 bytes.",
)
