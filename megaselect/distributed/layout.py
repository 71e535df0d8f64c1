"""Which rank holds which rows, and which micro-batches it takes. No torch.

Rank r of n takes the micro-batches r, r + n, r + 2n, ... of a step. Ranks stand in groups that each hold one whole
model, a replica; inside a group every parameter is cut by rows, as FSDP2 cuts it: so many rows a rank, rounded up, that
the last ranks may hold fewer or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megaselect.errors import ConfigError

if TYPE_CHECKING:
    from megaselect.config import Config, ParallelConfig


@dataclass(frozen=True)
class Layout:
    """`ranks` ranks in `replicas` groups; shards: ranks that hold a model together, 1 where each holds all of it."""

    ranks: int = 1
    rank: int = 0
    replicas: int = 1
    sharding: str = "none"

    @classmethod
    def of(cls, parallel: ParallelConfig, ranks: int, rank: int) -> Layout:
        """What the config's section comes to on so many ranks. Raises ConfigError where replicas do not divide them."""
        replicas = parallel.replicas
        if ranks % replicas:
            raise ConfigError(
                f"parallel.replicas ({replicas}) must divide the {ranks} rank{'s' if ranks > 1 else ''}: use "
                f"{_divisors(ranks)}, or start other ranks"
            )
        shares = parallel.sharding != "none" and ranks > replicas
        return cls(ranks, rank, replicas if shares else ranks, parallel.sharding if shares else "none")

    def check(self, config: Config) -> None:
        """Raises ConfigError where the global batch does not divide."""
        micro, total = config.training.micro_batch_size, config.training.global_batch_size
        if total % (micro * self.ranks):
            raise ConfigError(
                f"{self.ranks} ranks with training.micro_batch_size {micro} take {micro * self.ranks} samples at a "
                f"time, which does not divide training.global_batch_size ({total}): use a multiple of "
                f"{micro * self.ranks}, or other ranks"
            )

    @property
    def shards(self) -> int:
        """Ranks that hold a model together."""
        return self.ranks // self.replicas

    @property
    def shard(self) -> int:
        """This rank's place among them."""
        return self.rank % self.shards

    @property
    def replica(self) -> int:
        """The group of this rank."""
        return self.rank // self.shards

    def rows(self, total: int) -> range:
        """Those of a parameter of so many rows that this rank holds."""
        return shard_rows(total, self.shards, self.shard)

    def to_dict(self) -> dict[str, int | str]:
        """What all ranks have alike, as JSON can hold it."""
        return {"ranks": self.ranks, "replicas": self.replicas, "sharding": self.sharding}

    def __str__(self) -> str:
        if self.ranks == 1:
            return "1 rank"
        if self.shards == 1:
            return f"{self.ranks} ranks, each with the whole model"
        groups = f"{self.replicas} groups of {self.shards} that share" if self.replicas > 1 else "sharing"
        return f"{self.ranks} ranks, {groups} {self.sharding}"


def shard_rows(total: int, shards: int, shard: int) -> range:
    """The rows of one of `shards` ranks; a scalar counts as one row."""
    each = -(-total // shards)
    return range(min(shard * each, total), min((shard + 1) * each, total))


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
