"""Codistillation by predictions: what the other groups predict for the very same batch, as they train on it.

Source: Sodhani et al. 2020, "A closer look at codistillation for distributed training". The predictions are of the training
pass itself: of the newest weights, with dropout and with a batch norm's statistics of the batch, detached. At the first step,
where nobody has learnt anything, nobody is heard, as with snapshots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from odist.exchange.predictions import PredictionExchange
from odist.losses import Soft
from odist.tasks.base import Batch
from odist.teachers import PeersOptions
from odist.teachers.base import TeacherSetup, rising
from odist.teachers.kept import Kept, pack, unpack


class LivePeers:
    """Other groups that are heard as they predict.

    exchange: this group's end; peers: the groups that teach it, which may include its own
    period: steps between two exchanges; the labels alone count at the others
    burn_in: steps before the teachers are heard; ramp: steps over which their weight then rises
    kept: which classes are exchanged, None for all; replicas: processes of the group, which send equally much
    """

    lookahead = 1

    @classmethod
    def of(cls, options: PeersOptions, setup: TeacherSetup, exchange: PredictionExchange) -> LivePeers:
        group, clock = setup.mesh.group, setup.clock
        return cls(
            exchange,
            peers=[peer for peer in range(group.size) if peer != group.index or options.include_self],
            period=max(1, clock.steps(options.period)),
            burn_in=clock.steps(options.burn_in),
            ramp=clock.steps(options.ramp),
            kept=Kept.of(options, setup.task),
            replicas=setup.mesh.replica.size,
        )

    def __init__(
        self,
        exchange: PredictionExchange,
        *,
        peers: list[int],
        period: int = 1,
        burn_in: int = 0,
        ramp: int = 0,
        kept: Kept | None = None,
        replicas: int = 1,
    ) -> None:
        self.exchange = exchange
        self.peers = peers
        self.period = period
        self.burn_in, self.ramp = burn_in, ramp
        self.kept = kept
        self.replicas = replicas
        self.heard = False

    def hears(self, step: int) -> bool:
        """Whether the groups exchange predictions at `step` (0-based)."""
        return step > 0 and step >= self.burn_in and step % self.period == 0

    def forwards(self, step: int) -> float:
        return 0

    def due(self, step: int) -> bool:
        return False  # weights never travel

    def publish(self, step: int, offered: Callable[[], nn.Module]) -> None:
        pass

    def refresh(self, step: int) -> None:
        pass

    def show(self, step: int, worker: int, logits: Tensor) -> bool:
        """Show the other groups a prediction; whether they have to take their turns before theirs can be heard."""
        if not self.hears(step):
            return False
        content = logits if self.kept is None else self.kept(logits)
        self.exchange.show(step, worker, pack(content, cut=self.kept is not None))
        return self.exchange.takes_turns

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        if not self.hears(step):
            return None
        seen = self.exchange.see(step, worker)
        self.heard = True
        cut = self.kept is not None
        soft = Soft(tuple(unpack(seen[peer], like=logits, cut=cut) for peer in self.peers))
        return rising(soft, step=step, burn_in=self.burn_in, ramp=self.ramp)

    def log(self) -> dict[str, Any]:
        return {"exchange_bytes": self._sent, **self.exchange.log()}

    def summary(self) -> dict[str, Any]:
        """Whether anybody was heard, and the bytes that the group has sent to the others, counted."""
        return {"taught": self.heard, "exchange_bytes": self._sent}

    @property
    def _sent(self) -> int:
        return self.exchange.sent * self.replicas

    def state_dict(self) -> dict[str, Any]:
        return {"heard": self.heard, "sent": self.exchange.sent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.heard, self.exchange.sent = state["heard"], state["sent"]
