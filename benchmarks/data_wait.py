"""How long does a step wait for its data? `python benchmarks/data_wait.py`

Training steps of one model, in turns with batches read ahead by a thread and with batches read when they are asked for.
The wait is the time until the batch is on the device. Exit 1 where reading ahead leaves it above 1 % of the step.
--read-ms makes every batch take that much longer to read, as from a disk that is far away.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ALLOWED_SHARE = 0.01
STEPS_A_TURN = 11


@dataclass(frozen=True)
class SlowSource:
    """The batches of `source`, each after a wait, which leaves the processor to others as waiting for a disk does."""

    source: Any
    seconds: float

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Any:
        time.sleep(self.seconds)
        return self.source.batch(first_sample_index, micro_batch_size)


def measure(config: Any, steps: int, depths: tuple[int, ...], read_ms: float) -> dict[int, list[tuple[float, float]]]:
    """Depth of reading ahead -> (milliseconds of waiting, milliseconds of the step) of each of `steps` steps."""
    from megaselect.build import build_model
    from megaselect.data.prefetch import Prefetcher
    from megaselect.training.datasets import open_datasets
    from megaselect.training.optimizer import MixedPrecisionAdamW
    from megaselect.training.phases import PhaseTimes
    from megaselect.training.state import RunState
    from megaselect.training.step import Stepper

    model = build_model(config)
    device = next(model.parameters()).device
    optimizer = MixedPrecisionAdamW(model, config.training)
    source = SlowSource(open_datasets(config).train, read_ms / 1e3)
    phases, state = PhaseTimes(device), RunState(0, 0)
    times: dict[int, list[tuple[float, float]]] = {depth: [] for depth in depths}
    turns = -(-steps // (STEPS_A_TURN - 1))
    for turn in range(turns + 1):
        for depth in depths:
            with Prefetcher(source, depth, pin_memory=device.type == "cuda") as batches:
                stepper = Stepper(config.training, model, optimizer, batches, phases.done)
                for number in range(STEPS_A_TURN):
                    phases.start()
                    _, state = stepper.step(state)
                    spans = phases.milliseconds()
                    # The first turn fills the allocator; the first batch of a turn cannot have been read ahead.
                    if turn and number:
                        times[depth].append((spans["data"], sum(spans.values())))
    return times


def main() -> int:
    """Exit status: 0 within the target, 1 above it, 2 for settings that cannot run."""
    from benchmarks.device import describe, environment
    from megaselect.config import Config
    from megaselect.devices import resolve_device
    from megaselect.errors import MegaselectError

    parser = argparse.ArgumentParser(description="Share of a training step that waits for data.")
    parser.add_argument("--config", default="tiny", help="name in configs/ or a YAML file (default tiny)")
    parser.add_argument("--steps", type=int, default=100, help="measured steps of each kind (default 100)")
    parser.add_argument("--read-ms", type=float, default=0.0, help="added to the reading of each batch (default 0)")
    arguments = parser.parse_args()
    try:
        config = Config.from_yaml(arguments.config)
        ahead = config.data.prefetch
        times = measure(config, arguments.steps, tuple(dict.fromkeys((0, ahead))), arguments.read_ms)
    except MegaselectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(describe(environment(resolve_device(config.training.device)))))
    for depth, spans in times.items():
        waits, wholes = zip(*spans, strict=True)
        share = sum(waits) / sum(wholes)
        print(
            f"{depth} read ahead: waits {median(waits):.3f} ms a step (most {max(waits):.3f}), "
            f"step {median(wholes):.1f} ms, share {share:.3%} over {len(spans)} steps"
        )
    return int(share > ALLOWED_SHARE)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as in run.py
    sys.exit(main())
