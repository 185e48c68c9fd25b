"""The exchange between groups that take turns in one process: a dict of copies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from odist.exchange import MemoryOptions
from odist.exchange.base import ExchangeSetup, Published, Snapshot, Weights


class MemoryExchange:
    """One group's end of an exchange in memory.

    group: this group; published: the dict that all groups share, by group and step
    keep: snapshots of this group that stay in it
    """

    durable = False

    @classmethod
    def of(cls, options: MemoryOptions, setup: ExchangeSetup) -> MemoryExchange:
        # Of groups that take turns, the first publishes its next step before the last has heard the one before.
        ahead = 2 if setup.schedule.interval == 1 or setup.schedule.at_end else 1
        return cls(setup.group, published=setup.published, keep=setup.schedule.lag + ahead)

    def __init__(self, group: int, *, published: Published, keep: int = 1) -> None:
        self.group = group
        self.published = published
        self.keep = keep

    def publish(self, step: int, weights: Weights) -> None:
        copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
        own = self.published.setdefault(self.group, {})
        own[step] = Snapshot(self.group, step, copies, time.time())
        for old in sorted(own)[: -self.keep]:
            del own[old]

    def flush(self) -> bool:
        return True

    def follow(self, peers: Sequence[int]) -> None:
        pass

    def fetch(
        self, peer: int, *, step: int | None = None, newer_than: tuple[int, int] | None = None
    ) -> Snapshot | None:
        there = self.published.get(peer, {})
        if step is not None:
            return there.get(step)
        fresh = there[max(there)] if there else None
        return fresh if fresh is not None and (newer_than is None or fresh.age > newer_than) else None

    def log(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass
