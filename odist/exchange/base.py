"""How weights travel between groups: publish one's own, fetch a peer's.

An exchange knows nothing about models, teachers or time; it moves named tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from odist.mesh import Mesh

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


Published = dict[int, dict[int, Snapshot]]  # by group and step
Shown = dict[int, dict[tuple[int, int], Tensor]]  # predictions by group, then by step and worker


@dataclass(frozen=True)
class Schedule:
    """When a teacher asks its peers for snapshots.

    interval: steps between two of them; lag: intervals that one is old when it is asked for
    lockstep: each is asked for by its step and waited for up to `timeout` seconds; otherwise the newest there is is taken
    readers: groups that ask for this group's; None: its own peers
    at_end: whether they are asked for after the last step, too, which may be right after another time
    """

    interval: int
    lag: int = 0
    lockstep: bool = True
    timeout: float = 600.0
    readers: Sequence[int] | None = None
    at_end: bool = False


@dataclass(frozen=True)
class ExchangeSetup:
    """What one group's end of an exchange may use.

    group, peers: this group and those that it learns from; schedule: when it asks for their weights
    folder: of the run; run: its id; num_steps: its length
    weights_of: group -> weights of a model like its, for their names, shapes and sizes
    is_writer: whether this process publishes for its group and looks for fresh snapshots
    last_checkpoint: tells the step of this group's oldest kept checkpoint, -1 without one
    published, shown: what the groups of this process have published in memory or have shown, the same dicts for all of them
    num_groups: of the run; across: the processes of this one's number in all groups, None where they do not meet
    publishes: whether a writer publishes; if not, it only looks
    """

    group: int
    peers: Sequence[int]
    schedule: Schedule
    folder: Path
    run: str
    num_steps: int
    weights_of: Callable[[int], Weights]
    is_writer: bool
    last_checkpoint: Callable[[], int]
    published: Published
    num_groups: int = 1
    shown: Shown = field(default_factory=dict)
    across: Mesh | None = None
    publishes: bool = True


class Exchange(Protocol):
    """Weights between groups; every instance belongs to one group.

    durable: whether what was published survives this process
    """

    durable: bool

    @classmethod
    def of(cls, options: Any, setup: ExchangeSetup) -> Exchange:
        """Make one group's end. options: of the dataclass declared in `odist.exchange`, None without one."""
        ...

    def publish(self, step: int, weights: Weights) -> None:
        """Offer this group's weights after `step` completed steps."""
        ...

    def flush(self) -> bool:
        """Whether peers can now read all that was published; what could not be written is tried once more.

        May take as long as the store does, so it belongs into a thread.
        """
        ...

    def follow(self, peers: Sequence[int]) -> None:
        """Look for fresh snapshots of these peers alone from now on; before the first call, of all of them."""
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
