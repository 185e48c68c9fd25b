"""The exchange of predictions: all groups read the same batch, and each shows the others what it predicts for it.

Source: Sodhani et al. 2020, "A closer look at codistillation for distributed training" (in its second version as coordinated
sampling). Groups of one process take turns within a step; as processes they gather over all groups, those of the same
number in their group with each other. Nothing is stale, no model runs a second time, and no group can go on without the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odist.errors import LostWorkers
from odist.exchange import PredictionsOptions
from odist.exchange.base import ExchangeSetup, Shown
from odist.mesh import Mesh

KEPT = 2  # showings of a group that takes turns: the first shows its next one before the last has seen the one before


class PredictionExchange:
    """One group's end of it.

    group: this group; num_groups: of the run; shown: what the groups of this process have shown, the same dict for all of them
    across: the processes of this one's number in all groups; None where the groups take turns in one process
    """

    durable = False

    @classmethod
    def of(cls, options: PredictionsOptions, setup: ExchangeSetup) -> PredictionExchange:
        return cls(setup.group, num_groups=setup.num_groups, shown=setup.shown, across=setup.across)

    def __init__(self, group: int, *, num_groups: int, shown: Shown, across: Mesh | None = None) -> None:
        self.group, self.num_groups = group, num_groups
        self.shown, self.across = shown, across
        self.sent = 0  # bytes, to all others
        self._own = torch.empty(0, dtype=torch.uint8)

    @property
    def takes_turns(self) -> bool:
        """Whether the other groups show theirs only when this one lets them."""
        return self.across is None

    def show(self, step: int, worker: int, content: Tensor) -> None:
        """Show the others what worker `worker` predicts at `step`: bytes, uint8 [n]."""
        self._own = content
        if self.across is None:
            own = self.shown.setdefault(self.group, {})
            own[step, worker] = content
            for old in list(own)[:-KEPT]:
                del own[old]
            self.sent += (self.num_groups - 1) * len(content)

    def see(self, step: int, worker: int) -> Sequence[Tensor]:
        """What the workers of this number show in all groups at `step`, by group.

        Raises LostWorkers if a group is gone, is late by more than exchange.timeout, or is at another step.
        """
        if self.across is None:
            return [self.shown[group][step, worker] for group in range(self.num_groups)]
        try:
            return self._gather(self.across, (step, worker))
        except RuntimeError as error:
            raise LostWorkers(
                f"group {self.group} does not hear the predictions of another group at step {step}: "
                f"{str(error).splitlines()[0]} The same command continues from the last checkpoint."
            ) from error

    def _gather(self, across: Mesh, place: tuple[int, int]) -> list[Tensor]:
        said = [found.tolist() for found in across.gather(torch.tensor([*place, len(self._own)]))]
        if any(tuple(one[:2]) != place for one in said):
            raise LostWorkers(f"the groups are at different steps: {', '.join(str(one[0]) for one in said)}.")
        largest = max(one[2] for one in said)
        padded = self._own.new_zeros(largest)
        padded[: len(self._own)] = self._own
        self.sent += (self.num_groups - 1) * largest
        return [whole[: one[2]] for whole, one in zip(across.gather(padded), said, strict=True)]

    def log(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.shown.pop(self.group, None)
