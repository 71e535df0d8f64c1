"""The predicted peak of a training step against torch's own trackers of memory.

Seen here: within 0.01 % of MemTracker in fp32 and within 0.6 % in 16 bit, and where the embedding's backward is the
peak. Five percent is what is promised, one what is asked for.
"""

import functools

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, make_batch, make_config
from torch.distributed._tools.mem_tracker import MemTracker

from megaselect import Config
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.planning.auto import assumed_costs, fastest_plan, problem_of, smallest_peak
from megaselect.prediction.assumed_time import cpu_speed
from megaselect.prediction.peak import predicted_peak
from megaselect.prediction.saved_bytes import LayerShape
from megaselect.recomputation.plan import make_plan, no_recompute
from megaselect.training.optimizer import MixedPrecisionAdamW

SIZES = {
    "num_layers": 2,
    "hidden_size": 96,
    "ffn_hidden_size": 384,
    "num_attention_heads": 4,
    "seq_length": 64,
    "vocab_size": 250,
    "batch": 4,
}
BF16, NO_DROPOUT, LARGE = {"dtype": "bf16"}, {"dropout_p": 0.0}, {"vocab_size": 4000}
FUSED, SDPA = {"attention": "fused"}, {"attention": "sdpa", "attention_dropout_p": 0.0}
EVERY = ["none", "softmax dropout", "core_attn dropout", "layernorm", "gelu", "all", "uniform 1", "uniform 3", "sqrt"]
SOME, FEW = ["none", "all", "uniform 1", "uniform 2"], ["none", "uniform 1"]
# What a model is like; the settings; micro-batches in a step. Every setting is there in fp32. What else a model is like
# (16 bit, dropout, attention, loss) does the same to each setting, so that two or more show it; soak tests the others.
FOUR = {"num_layers": 4}
CASES = {
    "fp32": (FOUR, [*EVERY, "dropout", "softmax"], 1),
    "bf16": (BF16 | FOUR, SOME, 1),
    "no dropout": (NO_DROPOUT, ["none", "all"], 1),
    "no dropout, bf16": (BF16 | NO_DROPOUT, FEW, 1),
    "fused": (FUSED, ["all", "uniform 2"], 1),
    "fused, bf16": (BF16 | FUSED, FEW, 1),
    "sdpa": (SDPA, ["none", "uniform 1"], 1),
    "sdpa, bf16": (BF16 | SDPA, FEW, 1),
    "large vocabulary": (LARGE, SOME, 1),
    "large vocabulary, bf16": (BF16 | LARGE, FEW, 1),
    "loss in chunks": (LARGE | {"loss_chunk_tokens": 40}, ["none", "uniform 2"], 1),
    "3 micro-batches": ({}, ["none", "uniform 1"], 3),
    "2 micro-batches, bf16": (BF16, FEW, 2),
    "2 micro-batches, large vocabulary": (LARGE, ["all", "uniform 1"], 2),
}
OTHERS = [
    (case, name)
    for case, (_, names, _) in CASES.items()
    for name in (EVERY if case == "bf16" else SOME)
    if name not in names
]


class Training:
    """A model and its optimizer after a first step, so that the moments exist."""

    def __init__(self, config, device="cpu"):
        self.config = Config.from_dict(config.to_dict(), overrides={"training.device": device})
        self.model = build_unchecked(self.config)
        self.optimizer = MixedPrecisionAdamW(self.model, self.config.training)
        self.batch = [tensor.to(device) for tensor in make_batch(self.config)]
        self.shape = LayerShape.of(self.config, next(self.model.parameters()).element_size())
        self.step()

    def apply(self, name):
        """The plan of a setting, which takes effect."""
        plan = make_plan(make_config(SETTINGS[name]).recompute, self.config.model.num_layers)
        apply_recompute(self.model, plan)
        return plan

    def step(self, micro_batches=1, between=lambda: None):
        for _ in range(micro_batches):
            self.optimizer.backward(self.model(*self.batch) / micro_batches)
            between()
        self.optimizer.step(1e-3)

    def tracked_peak(self, micro_batches):
        """What MemTracker says of a step. It wants to be told where a new forward begins."""
        tracker = MemTracker()
        tracker.track_external(self.model, self.optimizer._adam, *self.optimizer.masters.values())
        with tracker:
            self.step(micro_batches, tracker.reset_mod_stats)
        return sum(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())

    def static_bytes(self):
        """Weights, moments and master weights."""
        weights = sum(weight.nbytes for weight in self.model.parameters())
        return weights + sum(tensor.nbytes for tensor in self.optimizer.tensors().values())


@functools.cache
def training_of(case):
    return Training(make_config(**(SIZES | CASES[case][0])))


@pytest.mark.filterwarnings("ignore:Expected a tensor")  # the tracker's, of 16-bit gradients that are freed at once
@pytest.mark.parametrize(
    ("case", "name"),
    [
        *((case, name) for case, (_, names, _) in CASES.items() for name in names),
        *(pytest.param(*other, marks=pytest.mark.soak) for other in OTHERS),
    ],
)
def test_the_peak_of_a_step_is_mem_tracker_s(case, name):
    training, micro_batches = training_of(case), CASES[case][2]
    predicted = predicted_peak(training.shape, training.apply(name), micro_batches)
    exact = training.shape.element_bytes == 4 and predicted.moment != "backward of the embedding"
    assert predicted.bytes == pytest.approx(training.tracked_peak(micro_batches), rel=1e-4 if exact else 1e-2)


@pytest.mark.parametrize(("case", "name"), [("fp32", "none"), ("fp32", "uniform 3"), ("3 micro-batches", "uniform 1")])
def test_the_peak_of_a_step_is_the_allocator_s(case, name, peak_bytes):
    """For settings whose ops allocate nothing inside themselves at the peak, which no tracker of results sees."""
    training, micro_batches = training_of(case), CASES[case][2]
    predicted = predicted_peak(training.shape, training.apply(name), micro_batches)
    measured = training.static_bytes() + peak_bytes(lambda: training.step(micro_batches))
    assert predicted.bytes == pytest.approx(measured, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Expected a tensor")
@pytest.mark.parametrize(
    ("case", "share"), [("fp32", 0.0), ("fp32", 0.2), ("fp32", 0.4), ("fp32", 0.6), ("bf16", 0.0), ("bf16", 0.4)]
)
def test_the_peak_of_a_plan_for_a_budget(case, share):
    """Layers that differ from each other, and the budget is kept by what is measured too."""
    training = training_of(case)
    problem = problem_of(training.config, training.shape.element_bytes, on_gpu=False)
    costs = assumed_costs(problem.shape, cpu_speed())
    low, high = smallest_peak(problem, costs).bytes, predicted_peak(training.shape, no_recompute(4)).bytes
    budget = low + int(share * (high - low))
    found = fastest_plan(problem, lambda: costs, budget)
    assert len({(chunk.checkpointed, found.plan.modules[chunk.first]) for chunk in found.plan.chunks}) > 1
    apply_recompute(training.model, found.plan)
    measured, error = training.tracked_peak(1), 1e-4 if case == "fp32" else 1e-2
    assert found.peak.bytes == pytest.approx(measured, rel=error)
    assert measured <= budget * (1 + error)


def test_the_moment_of_the_peak():
    """Where the loss's logits are small the last layer's backward, else the loss; with full the first layer's."""
    moments = {}
    for case, name in [("fp32", "none"), ("fp32", "uniform 1"), ("fp32", "uniform 3"), ("large vocabulary", "none")]:
        training = training_of(case)
        moments[case, name] = predicted_peak(training.shape, training.apply(name)).moment
    assert list(moments.values()) == ["backward of layers.3", "backward of layers.0", "backward of layers.0-2", "loss"]


GPT2 = {
    "num_layers": 4,
    "hidden_size": 768,
    "ffn_hidden_size": 3072,
    "num_attention_heads": 12,
    "seq_length": 1024,
    "vocab_size": 50257,
    "batch": 4,
}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("attention", ["unfused", "fused", "sdpa"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_peak_of_a_step_on_a_gpu(dtype, attention, micro_batches):
    dropout = {"attention_dropout_p": 0.0} if attention == "sdpa" else {}
    training = Training(make_config(dtype=dtype, attention=attention, **GPT2, **dropout), "cuda")
    differences = {}
    for name in EVERY:
        plan = training.apply(name)
        training.step(micro_batches)
        torch.cuda.reset_peak_memory_stats()
        training.step(micro_batches)
        measured = torch.cuda.max_memory_allocated()
        differences[name] = predicted_peak(training.shape, plan, micro_batches, on_gpu=True).bytes / measured - 1
    assert {name: off for name, off in differences.items() if abs(off) > 0.05} == {}, differences
