"""Which groups teach a group: all others, the next ones in a ring, or some that are drawn anew at every reload.

In a ring and with a draw a group reads the same number of peers however many groups there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from odist.rng import derive


@dataclass(frozen=True)
class Topology:
    """Who teaches whom among the groups of one run.

    name: all, ring or random; degree: peers that a group has at a time, of `ring` and `random`
    seed: the run's; a draw is a pure function of seed, group and step, so that a continued run draws the same
    """

    name: str
    degree: int
    num_groups: int
    seed: int

    @property
    def is_redrawn(self) -> bool:
        """Whether a group's peers change from one reload to the next."""
        return self.name == "random" and self.degree < self.num_groups - 1

    def peers(self, group: int, *, step: int) -> list[int]:
        """The groups, rising, that teach `group` from the reload after `step` completed steps on."""
        others = self._others(group)
        if self.name == "random":
            others.sort(key=lambda peer: derive(self.seed, "peers", group=group, replica=peer, step=step))
        return sorted(others if self.name == "all" else others[: self.degree])

    def ever(self, group: int) -> Sequence[int]:
        """The groups, rising, that teach `group` at some time."""
        return sorted(self._others(group)) if self.is_redrawn else self.peers(group, step=0)

    def readers(self, group: int) -> Sequence[int]:
        """The groups, rising, that `group` teaches at some time."""
        return [other for other in range(self.num_groups) if other != group and group in self.ever(other)]

    def _others(self, group: int) -> list[int]:
        """All other groups, in a ring's order."""
        return [(group + distance) % self.num_groups for distance in range(1, self.num_groups)]
