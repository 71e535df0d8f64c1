"""Counts, to the byte, what the forward pass of any torch model keeps for backward, with and without checkpointing.

    python examples/bytes_of_any_model.py

Prints the bytes of each layer, what a checkpoint would make again, and the largest tensors of one layer by name.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megaselect import ledger


class Encoder(nn.Module):
    """Any module will do; layers are what stands in its lists of modules."""

    def __init__(self, checkpoints):
        super().__init__()
        self.checkpoints = checkpoints
        self.embedding = nn.Embedding(1000, 64)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True) for _ in range(3))

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints else layer(x)
        return x.square().mean()


def encoder():
    """A model and a batch, which is what `megaselect estimate --model bytes_of_any_model:encoder` asks for."""
    return Encoder(checkpoints=False), torch.randint(1000, (8, 128))


def main():
    _, tokens = encoder()
    for checkpoints in (False, True):
        model = Encoder(checkpoints)
        with ledger.record(model) as record:
            loss = model(tokens)
        loss.backward()  # outside, or what runs again there would be counted too
        print(f"with torch's checkpoint: {record.total:,} bytes" if checkpoints else f"plain: {record.total:,} bytes")
        for layer, count in record.by_layer().items():
            print(f"  {layer or 'outside the layers':<20}{count:>12,}")
        if checkpoints:
            print(f"  made again in backward: {record.recomputed_total:,} bytes, a layer at a time")
            continue
        print("  largest in layers.0:")
        rows = [row for row in record.rows if row.layer == "layers.0"]
        for row in sorted(rows, key=lambda row: -row.bytes)[:4]:
            print(f"    {row.name:<24}{row.bytes:>12,}  {tuple(row.shape)}")


if __name__ == "__main__":
    main()
