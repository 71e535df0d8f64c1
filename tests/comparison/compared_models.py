"""Models that tests compare on the command line: compared_models:function. None is one of ours."""

import torch
from torch import nn

LAYERS, HIDDEN = 2, 32


class Looks(nn.Module):
    """Looks at a value, which a tensor without values has not; no module of its own is a layer."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN), nn.Dropout(0.1)

    def forward(self, tokens):
        x = nn.functional.one_hot(tokens, HIDDEN).float()
        y = self.down(self.dropout(torch.nn.functional.gelu(self.up(x)))).square().mean()
        return {"loss": y if y > 0 else -y}


def encoder():
    """With dropout, and without a loss of its own."""
    layer = nn.TransformerEncoderLayer(HIDDEN, 4, 64, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False), torch.randn(4, 16, HIDDEN)


def looks():
    return Looks(), torch.randint(HIDDEN, (3, 5))


def wrong_batch():
    return encoder()[0], torch.randn(4, 16, HIDDEN + 1)


def raises():
    raise ValueError("no weights here\nand more lines")
