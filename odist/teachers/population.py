"""PAPA: no soft targets; now and then a group's weights are pulled towards the mean of all groups' weights, which predicts.

Source: Jolicoeur-Martineau et al. 2023, "PopulAtion Parameter Averaging (PAPA)", algorithm 1 and the authors' code: every ten
steps each member keeps 0.99 of its weights; with a whole pull, every few epochs, it is PAPA-all. It is a teacher because it
needs what codistillation needs: the groups' snapshots, at agreed steps or whatever is newest, through any exchange. A pull of 0
leaves an ensemble's members, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from odist.exchange.base import Snapshot, Weights
from odist.losses import Soft
from odist.tasks.base import Batch
from odist.teachers import PopulationOptions
from odist.teachers.base import TeacherSetup
from odist.teachers.peers import Peers
from odist.teachers.taking import as_dict
from odist.wrapping import full_state


class Population(Peers):
    """Groups that are pulled towards their mean.

    pull: share of the way that the weights go; running statistics stay a group's own
    keep_mean: told the completed steps and the mean of the groups' parameters, by name
    """

    at_end = True
    pull: float
    keep_mean: Callable[[int, Weights], None]
    published_at = -1  # completed steps at the last publication

    @classmethod
    def of(cls, options: PopulationOptions, setup: TeacherSetup) -> Population:  # type: ignore[override]
        teacher = super().of(options, setup)
        assert isinstance(teacher, Population)
        teacher.pull, teacher.keep_mean = options.pull, setup.keep_mean
        return teacher

    def forwards(self, step: int) -> float:
        return 0

    def due(self, step: int) -> bool:
        """Whether the groups publish after `step` completed steps; after the last they do, for the mean that predicts."""
        return step + self.interval > self.burn_in and (step % self.interval == 0 or step >= self.num_steps)

    def publish(self, step: int, offered: Callable[[], nn.Module]) -> None:
        if self.due(step) and step != self.published_at:  # after a pull a run that goes on has other weights to offer
            self.published_at = step
            self.exchange.publish(step, full_state(offered()))

    def refresh(self, step: int) -> None:
        self._now = step
        if not self.due(step):
            return
        taken = self.taking.take(step, peers=self.peers(step), held=self.snapshots)
        if self.lockstep and step >= self.num_steps:
            self.taking.wait_for_readers()
        self._use_all(taken, step=step)
        if self.snapshots and step >= self.burn_in:
            self._meet(step)
        if self.lockstep:
            self.snapshots.clear()

    @torch.no_grad()
    def _meet(self, step: int) -> None:
        """Make the mean of the groups' parameters, in the order of the groups, and go towards it."""
        self.heard = True
        own = dict(self.student.named_parameters())
        members: dict[int, Mapping[str, Tensor]] = {
            **{peer: one.weights for peer, one in self.snapshots.items()},
            self.group: own,
        }
        means: Weights = {}
        for name, parameter in own.items():
            total = torch.zeros_like(parameter)
            for _, weights in sorted(members.items()):
                total.add_(weights[name].to(parameter.device))
            means[name] = total / len(members)
        if step % self.interval == 0:
            for name, parameter in own.items():
                parameter.lerp_(means[name], self.pull)
        self.keep_mean(step, means)

    def _use(self, snapshot: Snapshot, *, step: int) -> None:
        self.snapshots[snapshot.group] = snapshot

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        return None

    def _is_stale(self, peer: int) -> bool:
        return False

    def state_dict(self) -> dict[str, Any]:
        """As of `Peers`, with what was published before the last pull: peers may still ask for it."""
        own = None if self.published_at < 0 else self.exchange.fetch(self.group, step=self.published_at)
        return {**super().state_dict(), "published": [] if own is None else [as_dict(own)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.published_at = max((saved["step"] for saved in state["published"]), default=-1)
