"""The splits of a dataset while they are written in a workspace, with counts of what is in them."""

from collections import defaultdict
from dataclasses import asdict
from typing import Self

import numpy as np

from megaselect.data.encoding import Counts, EncodedChunk
from megaselect.data.split_files import SplitFile
from megaselect.data.workspace import Workspace


class Output:
    """Goes on from the workspace's progress. As a context manager it closes its files.

    num_chunks, num_bytes: of the corpus, all that was added to the splits.
    counts: split -> kind of file -> counts.
    """

    def __init__(self, workspace: Workspace, splits: list[str], dtype: np.dtype) -> None:
        progress = workspace.progress or {"num_chunks": 0, "num_bytes": 0, "positions": {}, "counts": {}}
        self._workspace = workspace
        self.num_chunks: int = progress["num_chunks"]
        self.num_bytes: int = progress["num_bytes"]
        self.counts: dict[str, dict[str, Counts]] = {
            split: defaultdict(Counts, {kind: Counts(**counts) for kind, counts in kinds.items()})
            for split, kinds in ({split: {} for split in splits} | progress["counts"]).items()
        }
        self._files = {
            split: SplitFile(workspace.path / split, dtype, progress["positions"].get(split)) for split in splits
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, encoded: EncodedChunk) -> None:
        """Append the next chunk."""
        for split, tokens in encoded.splits.items():
            self._files[split].append(tokens)
        for (split, kind), counts in encoded.counts.items():
            self.counts[split][kind].add(counts)
        self.num_chunks += 1
        self.num_bytes += encoded.num_bytes

    def save(self) -> None:
        """Settle what was added, on disk."""
        positions = {split: file.sync() for split, file in self._files.items()}
        counts = {split: {kind: asdict(count) for kind, count in kinds.items()} for split, kinds in self.counts.items()}
        progress = {"num_chunks": self.num_chunks, "num_bytes": self.num_bytes}
        self._workspace.save_progress({**progress, "positions": positions, "counts": counts})

    def write_indexes(self) -> None:
        """Complete the splits, once all is saved and each has a document."""
        for file in self._files.values():
            file.write_index()

    def totals(self, split: str) -> Counts:
        """Counts over all kinds of files."""
        total = Counts()
        for counts in self.counts[split].values():
            total.add(counts)
        return total
