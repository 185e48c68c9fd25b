"""How weights travel between groups: publish one's own, fetch a peer's.

An exchange knows nothing about models, teachers or time; it moves named tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A peer's full state (running statistics included) after `step` completed steps.

    group: the publisher; weights: by name; time: seconds since the epoch at publication
    """

    group: int
    step: int
    weights: Weights
    time: float


class Exchange(Protocol):
    """Weights between groups; every instance belongs to one group."""

    def publish(self, step: int, weights: Weights) -> None:
        """Offer this group's weights after `step` completed steps."""
        ...

    def fetch(self, peer: int, *, step: int | None = None, newer_than: int | None = None) -> Snapshot | None:
        """The peer's snapshot of exactly `step`, or its freshest one newer than `newer_than`; None if there is none."""
        ...
