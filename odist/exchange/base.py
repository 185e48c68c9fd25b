"""How weights travel between groups: publish one's own, fetch a peer's.

An exchange knows nothing about models, teachers or time; it moves named tensors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A peer's full state (running statistics included) after `step` completed steps.

    group: the publisher; weights: by name; time: seconds since the epoch at publication
    incarnation: how often the publisher had been started; sha256: of the published file
    """

    group: int
    step: int
    weights: Weights
    time: float
    incarnation: int = 0
    sha256: str = ""

    @property
    def age(self) -> tuple[int, int]:
        """Sorts a group's snapshots: what a restarted group publishes is newer, whatever its step."""
        return self.incarnation, self.step


class Exchange(Protocol):
    """Weights between groups; every instance belongs to one group.

    durable: whether what was published survives this process
    """

    durable: bool

    def publish(self, step: int, weights: Weights) -> None:
        """Offer this group's weights after `step` completed steps."""
        ...

    def flush(self) -> bool:
        """Whether peers can now read all that was published; what could not be written is tried once more.

        May take as long as the store does, so it belongs into a thread.
        """
        ...

    def fetch(
        self, peer: int, *, step: int | None = None, newer_than: tuple[int, int] | None = None
    ) -> Snapshot | None:
        """The peer's snapshot of exactly `step`, or its freshest one; None if there is none.

        newer_than: age (incarnation, step) that the freshest must exceed
        Of the own group it is one of the last that were published. By step it may take as long as the store does, so of
        a peer it belongs into a thread; the freshest comes at once.
        """
        ...

    def log(self) -> dict[str, Any]:
        """Counts of failures and the last reason (`exchange_reason`), for the log."""
        ...

    def close(self) -> None:
        """Finish what is being written."""
        ...


def fingerprint(weights: Weights) -> str:
    """Names an architecture: hash of the names, shapes and types of all its tensors."""
    shapes = sorted((name, list(tensor.shape), str(tensor.dtype)) for name, tensor in weights.items())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
