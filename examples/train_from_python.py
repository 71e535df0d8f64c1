"""Trains a small GPT from Python, once keeping all activations and once recomputing some, and compares every loss.

    python examples/train_from_python.py

Prints of each run how long a step took, what it saved for backward and where it is, then the losses side by side: they
are the same, to the bit. The text is the source of Python's standard library; its tokens are made by the first run, in
about ten seconds, and kept in ~/.cache/megaselect.
"""

import megaselect

SETTINGS = {
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.num_attention_heads": 4,
    "model.seq_length": 64,
    "training.max_steps": 20,
    "training.warmup_steps": 2,
    "training.lr": 3e-3,
    "logging.wandb": "disabled",
}


class Losses(megaselect.Callback):
    """Collects the loss of every step."""

    def __init__(self):
        self.losses = []

    def on_step(self, metrics):
        self.losses.append(metrics["loss"])


def train(mode):
    """The loss of every step."""
    config = megaselect.Config.from_yaml("tiny", {**SETTINGS, "recompute.mode": mode})
    heard = Losses()
    summary = megaselect.train(config, callbacks=[heard])
    print(f"recompute {summary.recompute}")
    print(f"  {summary.steps} steps at {summary.tokens_per_s:,.0f} tokens/s, validation loss {summary.valid_loss:.4f}")
    print(f"  {summary.saved_bytes:,} bytes saved for backward")
    print(f"  run directory {summary.run_dir}")
    return heard.losses


def main():
    none, selective = train("none"), train("selective")
    print("step      none  selective")
    for step, losses in enumerate(zip(none, selective, strict=True), start=1):
        if step % 5 == 0:
            print(f"{step:>4}  {losses[0]:.6f}   {losses[1]:.6f}")
    print("equal, to the bit" if none == selective else "NOT equal")


if __name__ == "__main__":
    main()
