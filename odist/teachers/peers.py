"""Codistillation: the other groups' recent snapshots teach.

Source: Anil et al. 2018, Algorithm 1 and section 2.1. Snapshots come through an exchange; a peer teaches
with its full state, in eval mode. Lock-step timing: at every multiple s of the interval the snapshots
of step s - lag are taken, so a run's bits do not depend on who was faster.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from odist.errors import LostWorkers
from odist.exchange.base import Exchange, Snapshot
from odist.losses import Soft
from odist.tasks.base import Batch, Forward
from odist.teachers.base import Batches, Panel


class Peers:
    """Teachers that train at the same time.

    student: the group's own model, copied for each peer; group: its index; peers: the other groups
    interval: steps between two reloads; lag: intervals that a snapshot is old when it is taken
    burn_in: steps before the teachers are heard; others: see `Panel`
    """

    def __init__(
        self,
        forward: Forward,
        *,
        student: nn.Module,
        exchange: Exchange,
        group: int,
        peers: Sequence[int],
        interval: int,
        lag: int,
        burn_in: int,
        batches: Batches,
        lookahead: int,
        num_steps: int,
    ) -> None:
        self.panel = Panel(forward, batches=batches, lookahead=lookahead, num_steps=num_steps)
        self.lookahead = lookahead
        self.student = student
        self.exchange = exchange
        self.group = group
        self.peers = list(peers)
        self.interval = interval
        self.lag = lag
        self.burn_in = burn_in
        self.num_steps = num_steps
        self.snapshots: dict[int, Snapshot] = {}  # in use, by peer
        self._now = 0  # completed steps at the last refresh
        self._heard_at = 0  # the step that last used the snapshots

    def publish(self, step: int, model: nn.Module) -> None:
        heard_until = step + (self.lag + 1) * self.interval
        if step % self.interval == 0 and heard_until > self.burn_in and step < self.num_steps:
            weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
            self.exchange.publish(step, weights)

    def refresh(self, step: int, model: nn.Module) -> None:
        self._now = step
        wanted = step - self.lag * self.interval
        due = step % self.interval == 0 and wanted > 0 and step + self.interval > self.burn_in
        if not due or step >= self.num_steps:
            return
        for peer in self.peers:
            snapshot = self.exchange.fetch(peer, step=wanted)
            if snapshot is None:
                raise LostWorkers(f"group {peer} has not published its weights of step {wanted}.")
            self._use(snapshot, step=step)

    def _use(self, snapshot: Snapshot, *, step: int) -> None:
        teacher = self.panel.models.get(snapshot.group)
        if teacher is None:
            teacher = copy.deepcopy(self.student)
            teacher.zero_grad(set_to_none=True)
        teacher.load_state_dict(snapshot.weights)
        self.panel.place(snapshot.group, teacher, step=step)
        self.snapshots[snapshot.group] = snapshot

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        self._heard_at = step
        return None if step < self.burn_in else self.panel.predict(step, worker, batch)

    def log(self) -> dict[str, Any]:
        if not self.snapshots:
            return {"teacher_age_steps": None, "teacher_age_seconds": None}
        return {
            "teacher_age_steps": self._heard_at - min(snapshot.step for snapshot in self.snapshots.values()),
            "teacher_age_seconds": round(time.time() - min(s.time for s in self.snapshots.values()), 3),
        }

    def state_dict(self) -> dict[str, Any]:
        """The panel's carry, the snapshots in use and this group's own that peers may still ask for."""
        newest = self._now // self.interval * self.interval
        steps = [newest - back * self.interval for back in range(self.lag, -1, -1)]
        published = [self.exchange.fetch(self.group, step=step) for step in steps]
        return {
            "panel": self.panel.state_dict(),
            "snapshots": [_as_dict(snapshot) for snapshot in self.snapshots.values()],
            "published": [_as_dict(snapshot) for snapshot in published if snapshot is not None],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for saved in state["published"]:
            self.exchange.publish(saved["step"], saved["weights"])
        for saved in state["snapshots"]:
            self._use(Snapshot(**saved), step=0)
        self.panel.load_state_dict(state["panel"])


def _as_dict(snapshot: Snapshot) -> dict[str, Any]:
    return {"group": snapshot.group, "step": snapshot.step, "weights": snapshot.weights, "time": snapshot.time}
