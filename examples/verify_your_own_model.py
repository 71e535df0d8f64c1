"""Asks megaselect.verify whether checkpointing changes the training of a model that Megaselect has never seen.

    python examples/verify_your_own_model.py

The same model twice: with torch's checkpoint as it should be, and with one that does not keep the random state, so that
each dropout mask is drawn anew in the second run. Torch trains both without a word. Prints a report of each: the second
one names the dropout that draws other numbers, and the gradients that are wrong.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import megaselect


class LanguageModel(nn.Module):
    """Any module will do, with any checkpoint in it."""

    def __init__(self, preserve_rng_state):
        super().__init__()
        self.preserve_rng_state = preserve_rng_state
        self.embedding, self.head = nn.Embedding(100, 32), nn.Linear(32, 100)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=self.preserve_rng_state)
        return cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def main():
    torch.manual_seed(0)
    tokens = torch.randint(100, (4, 17))
    batch = (tokens[:, :-1], tokens[:, 1:])
    for preserve_rng_state in (True, False):
        report = megaselect.verify(LanguageModel(preserve_rng_state), batch)
        print(f"preserve_rng_state={preserve_rng_state}: {'passed' if report.passed else 'FAILED'}")
        print(report, end="\n\n")


if __name__ == "__main__":
    main()
