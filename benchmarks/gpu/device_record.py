"""Writes what figures depend on, the GPU's power limit included, as JSON: `-m benchmarks.gpu.device_record cuda FILE`.

A process of its own, since a GPU that does not answer must hold up nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.device import environment

if __name__ == "__main__":
    device, path = torch.device(sys.argv[1]), Path(sys.argv[2])
    record = environment(device)
    if device.type == "cuda":
        torch.ones(1, device=device).add_(1).item()  # raises where it does not compute
    path.write_text(json.dumps(record))
    print(record["device"], flush=True)
