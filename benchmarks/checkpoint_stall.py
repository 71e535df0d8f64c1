"""What does a checkpoint cost the steps around it? `python benchmarks/checkpoint_stall.py`

Training steps of one model on random tokens, with a save every few steps: none, waited for, and written beside the
steps. Shown per save: how long the loop stood still, and by how much all the steps between two saves took longer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

MODES = ("no save", "waited for", "beside the steps")
MODEL = {
    "num_layers": 8,
    "hidden_size": 288,
    "num_attention_heads": 8,
    "seq_length": 128,
    "vocab_size": 1024,
}


class Bench:
    """One model and its saver; `turn` takes the steps from one save to the next."""

    def __init__(self, config: Any, run_dir: Path) -> None:
        import torch

        from megaselect.build import build_model
        from megaselect.training.checkpoint_writer import CheckpointSaver
        from megaselect.training.optimizer import MixedPrecisionAdamW

        self.config = config
        self.model = build_model(config)
        self.optimizer = MixedPrecisionAdamW(self.model, config.training)
        self.device = next(self.model.parameters()).device
        self.saver = CheckpointSaver(run_dir, config.training, "random", lambda: None, print)
        size = (config.training.micro_batch_size, config.model.seq_length)
        self.tokens = torch.randint(config.model.vocab_size, size, device=self.device)
        self.samples = torch.arange(size[0], device=self.device)
        self.saves = 0

    def turn(self, mode: str, steps: int) -> tuple[float, float]:
        """Seconds that the save kept the loop, and seconds of the save and the steps after it."""
        from megaselect.training.state import RunState

        started = time.perf_counter()
        if mode != MODES[0]:
            self.saves += 1
            self.saver.save(self.optimizer, RunState(self.saves, 0), self.config)
            if mode == MODES[1]:
                self.saver.wait()
        stood = time.perf_counter() - started
        for _ in range(steps):
            self.optimizer.backward(self.model(self.tokens, self.tokens, self.samples))
            self.optimizer.step(1e-4)
        return stood, time.perf_counter() - started

    def state_bytes(self) -> int:
        """Of what a checkpoint holds."""
        tensors = [*self.model.parameters(), *self.optimizer.tensors().values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> int:
    """Print the figures; exit status 0."""
    import torch

    from benchmarks.device import describe, environment
    from megaselect.config import Config

    parser = argparse.ArgumentParser(description="What a checkpoint costs the steps around it.")
    parser.add_argument("--steps", type=int, default=4, help="between two saves (default 4)")
    parser.add_argument("--turns", type=int, default=5, help="saves of each kind (default 5)")
    parser.add_argument("--layers", type=int, default=MODEL["num_layers"], help="of the model (default 8, 101 MB)")
    parser.add_argument("--directory", type=Path, help="on the disk to write to (default: the temporary one)")
    arguments = parser.parse_args()
    training = {"micro_batch_size": 4, "global_batch_size": 4}
    config = Config.from_dict({"model": MODEL | {"num_layers": arguments.layers}, "training": training})
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        bench = Bench(config, Path(directory))
        with bench.saver:
            for turn in range(arguments.turns + 1):
                for mode in MODES:
                    figures = bench.turn(mode, arguments.steps)
                    bench.saver.wait()
                    if turn:  # the first fills the allocator and the copies in host memory
                        times[mode].append(figures)
    print("\n".join(describe(environment(bench.device))))
    print(
        f"{bench.state_bytes() / 1e6:.0f} MB of state, {torch.get_num_threads()} threads, "
        f"{arguments.steps} steps after each save"
    )
    base = median(total for _, total in times[MODES[0]])
    for mode, figures in times.items():
        stood, total = (1e3 * median(each) for each in zip(*figures, strict=True))
        print(
            f"{mode:16}  loop stands {stood:7.1f} ms   save and steps {total:7.1f} ms   "
            f"more {total - 1e3 * base:7.1f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as in run.py
    raise SystemExit(main())
