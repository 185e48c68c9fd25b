"""The exchange between groups that take turns in one process: a dict of copies."""

from __future__ import annotations

import time
from typing import Any

from odist.exchange.base import Snapshot, Weights


class MemoryExchange:
    """One group's end of an exchange in memory.

    group: this group; shelf: the dict that all groups share, by group and step
    keep: snapshots of this group that stay on the shelf
    """

    durable = False

    def __init__(self, group: int, *, shelf: dict[int, dict[int, Snapshot]], keep: int = 1) -> None:
        self.group = group
        self.shelf = shelf
        self.keep = keep

    def publish(self, step: int, weights: Weights) -> None:
        copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
        own = self.shelf.setdefault(self.group, {})
        own[step] = Snapshot(self.group, step, copies, time.time())
        for old in sorted(own)[: -self.keep]:
            del own[old]

    def flush(self) -> bool:
        return True

    def fetch(
        self, peer: int, *, step: int | None = None, newer_than: tuple[int, int] | None = None
    ) -> Snapshot | None:
        there = self.shelf.get(peer, {})
        if step is not None:
            return there.get(step)
        fresh = there[max(there)] if there else None
        return fresh if fresh is not None and (newer_than is None or fresh.age > newer_than) else None

    def log(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass
