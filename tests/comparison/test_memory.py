import torch
from measurements import CONFIG

from megaselect.comparison import memory
from megaselect.comparison.result import TimelinePoint
from megaselect.config import Config
from megaselect.prediction.weights import StaticBytes
from megaselect.training.optimizer import MixedPrecisionAdamW

MIB = 2**20


def test_the_course_of_a_function_on_a_cpu_is_exact():
    def hold_and_release():
        first = torch.empty(3 * MIB, dtype=torch.int8)
        second = torch.empty(5 * MIB, dtype=torch.int8)
        del first
        third = torch.empty(MIB, dtype=torch.int8)
        del second, third

    points = memory.follow_on_cpu(hold_and_release, held_before=100)
    assert [held - 100 for _, held in points] == [count * MIB for count in (3, 8, 5, 6, 1, 0)]
    assert points[0][0] == 0
    assert [when for when, _ in points] == sorted(when for when, _ in points)


def test_a_snapshot_of_a_gpu_is_read_as_changes():
    """Keys and actions as torch.cuda.memory._snapshot has them; memory that waits for a stream is not yet free."""
    trace = [
        {"action": "segment_alloc", "size": 4096, "time_us": 1_000_000},
        {"action": "alloc", "size": 512, "time_us": 1_000_000},
        {"action": "alloc", "size": 1024, "time_us": 1_500_000},
        {"action": "free_requested", "size": 512, "time_us": 2_000_000},
        {"action": "free_completed", "size": 512, "time_us": 3_000_000},
    ]
    changes = memory.snapshot_changes([trace, []])
    assert memory.course(changes, held_before=10) == [(0.0, 522), (0.5, 1546), (2.0, 1034)]


def test_thinning_out_keeps_the_peak_the_order_and_the_end():
    points = [(number / 1000, 10_000 if number == 617 else number % 7) for number in range(1001)]
    thinned = memory.thin_out(points, count=50)
    assert len(thinned) == 50
    assert TimelinePoint(0.617, 10_000) in thinned
    assert [point.seconds for point in thinned] == sorted(point.seconds for point in thinned)
    assert thinned[-1] == TimelinePoint(1.0, points[-1][1])
    assert memory.thin_out([(0.0, 3)]) == (TimelinePoint(0.0, 3),)
    assert memory.thin_out([]) == ()


def trained(dtype):
    from megaselect import build_model

    config = Config.from_dict(CONFIG.to_dict(), overrides={"training.dtype": dtype, "training.device": "cpu"})
    model = build_model(config)
    optimizer = MixedPrecisionAdamW(model, config.training)
    tokens = torch.zeros(1, 24, dtype=torch.int64)
    optimizer.backward(model(tokens, tokens, torch.zeros(1, dtype=torch.int64)))
    gradients = memory.gradient_bytes(model, optimizer)
    optimizer.step(1e-3)
    count, tensors = sum(weight.numel() for weight in model.parameters()), len(list(model.parameters()))
    return memory.static_bytes(model, optimizer, gradients), count, 4 * tensors  # AdamW counts steps in an fp32 scalar


def test_static_bytes_in_fp32():
    static, count, scalars = trained("fp32")
    assert static == StaticBytes(4 * count, 4 * count, 0, 8 * count + scalars)
    assert memory.gradient_bytes(torch.nn.Linear(2, 2), type("NoMasters", (), {"masters": {}})) == 0


def test_static_bytes_in_bf16():
    static, count, scalars = trained("bf16")
    assert static == StaticBytes(2 * count, 4 * count, 4 * count, 8 * count + scalars)
    assert static.total == 18 * count + scalars
