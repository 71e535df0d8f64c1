"""Train a GPT model from a source tree: `python train.py --recompute selective`. The same as `megaselect train`."""

import sys

from megaselect.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], train_prog="train.py"))
