"""Codistillation: the other groups' recent snapshots teach.

Source: Anil et al. 2018, Algorithm 1 and section 2.1. Snapshots come through an exchange; a peer teaches
with its full state, in eval mode. Lock-step timing: at every multiple s of the interval the snapshots
of step s - lag are taken, so a run's bits do not depend on who was faster. Freshest timing, the
paper's reality: whatever is newest is taken, and a slow or dead peer costs nothing but age.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from odist.exchange.base import Exchange, Schedule, Snapshot
from odist.exchange.predictions import PredictionExchange
from odist.exchange.topology import Topology
from odist.losses import Soft
from odist.mesh import Mesh
from odist.tasks.base import Batch, Forward
from odist.teachers import PeersOptions
from odist.teachers.base import Batches, Panel, TeacherSetup, rising
from odist.teachers.kept import Kept
from odist.teachers.live import LivePeers
from odist.teachers.precision import check
from odist.teachers.taking import Taking, as_dict
from odist.wrapping import full_state, load_full_state

# Freshest: reloads without anything new from a peer, and seconds, after which the log names it.
STALE_REFRESHES, STALE_SECONDS = 10, 30.0


class Peers:
    """Teachers that train at the same time.

    student: the group's own model; build_peer, relative_cost: see `TeacherSetup`; group: its index; peers: step of a reload -> the groups that teach from
    it on, which may include its own
    schedule: when snapshots are taken; lock-step waits for the agreed ones until `stop` says so
    burn_in: steps before the teachers are heard; ramp: steps over which their weight then rises
    others: see `Panel`
    """

    at_end = False  # see `Schedule`

    @classmethod
    def of(cls, options: PeersOptions, setup: TeacherSetup) -> Any:  # LivePeers where predictions are exchanged
        mesh, clock = setup.mesh, setup.clock
        group, own = mesh.group.index, [mesh.group.index] if options.include_self else []
        topology = Topology(options.topology, options.degree, num_groups=mesh.group.size, seed=setup.seed)
        schedule = Schedule(
            interval=max(1, clock.steps(options.interval)),
            lag=options.lag,
            lockstep=options.timing == "lockstep",
            timeout=options.timeout,
            readers=topology.readers(group),
            at_end=cls.at_end,
        )
        exchange: Any = setup.open_exchange(sorted([*topology.ever(group), *own]), schedule)
        if isinstance(exchange, PredictionExchange):
            return LivePeers.of(options, setup, exchange)
        check(setup.student, options.teacher_precision)  # now, and not when the burn-in is over
        return cls(
            setup.task.forward,
            student=setup.student,
            build_peer=setup.build_peer,
            relative_cost=setup.relative_cost,
            exchange=exchange,
            group=group,
            peers=lambda step: sorted([*topology.peers(group, step=step), *own]),
            schedule=schedule,
            burn_in=clock.steps(options.burn_in),
            ramp=clock.steps(options.ramp),
            batches=setup.batches,
            lookahead=options.lookahead,
            num_steps=clock.num_steps,
            mesh=mesh,
            stop=setup.stop,
            precision=options.teacher_precision,
            kept=Kept.of(options, setup.task),
        )

    def __init__(
        self,
        forward: Forward,
        *,
        student: nn.Module,
        build_peer: Callable[[int], nn.Module],
        relative_cost: Callable[[int], float],
        exchange: Exchange,
        group: int,
        peers: Callable[[int], Sequence[int]],
        schedule: Schedule,
        burn_in: int,
        ramp: int = 0,
        batches: Batches,
        lookahead: int,
        num_steps: int,
        mesh: Mesh,
        stop: Callable[[], bool] = lambda: False,
        precision: str = "auto",
        kept: Kept | None = None,
    ) -> None:
        self.panel = Panel(
            forward,
            batches=batches,
            lookahead=lookahead,
            num_steps=num_steps,
            mesh=mesh,
            precision=precision,
            kept=kept,
        )
        self.taking = Taking(exchange, group=group, schedule=schedule, mesh=mesh, stop=stop)
        self.lockstep = schedule.lockstep
        self.swaps: list[tuple[int, int, int, int, str]] = []  # since the last row of the log
        self.num_swaps = 0  # in the whole run
        self.heard = False  # whether a teacher was ever listened to
        self.ignored = 0  # predictions of a peer that were no finite numbers, or of another shape
        self.lookahead = lookahead
        self.student = student
        self.build_peer, self.relative_cost = build_peer, relative_cost
        self.exchange = exchange
        self.group = group
        self.peers = peers
        self.interval, self.lag = schedule.interval, schedule.lag
        self.burn_in = burn_in
        self.ramp = ramp
        self.num_steps = num_steps
        self.snapshots: dict[int, Snapshot] = {}  # in use, by peer
        self._unchanged: dict[int, int] = {}  # refreshes since a peer's last snapshot was taken, ...
        self._taken_at: dict[int, float] = {}  # ... and when that was
        self._now = 0  # completed steps at the last refresh
        self._heard_at = 0  # the step that last used the snapshots
        self._look_ahead(0)

    def forwards(self, step: int) -> float:
        if step < self.burn_in:
            return 0
        return sum(self.relative_cost(peer) for peer in self.peers(step // self.interval * self.interval))

    def due(self, step: int) -> bool:
        """Whether the group publishes its weights after `step` completed steps."""
        heard_until = step + (self.lag + 1) * self.interval
        last = step >= self.num_steps  # under freshest others may still train, and new groups join
        return heard_until > self.burn_in and (not self.lockstep if last else step % self.interval == 0)

    def publish(self, step: int, offered: Callable[[], nn.Module]) -> None:
        if self.due(step):
            self.exchange.publish(step, full_state(offered()))

    def refresh(self, step: int) -> None:
        """Take the snapshots that are due; Interrupted or LostWorkers if the wait for them ends otherwise.

        After the last step of lock-step it returns when the peers can read all that this group has published: it
        will not be there to publish again.
        """
        self._now = step
        if self.lockstep and step >= self.num_steps:
            self.taking.wait_for_readers()
        if step % self.interval or step + self.interval <= self.burn_in or step >= self.num_steps:
            return
        wanted = step - self.lag * self.interval
        if self.lockstep and wanted <= 0:
            return
        for peer in self.snapshots:
            self._unchanged[peer] = self._unchanged.get(peer, 0) + 1
        peers = self.peers(step)
        taken = self.taking.take(wanted, peers=peers, held=self.snapshots)
        self._use_all(taken, step=step)
        if any(peer in self.snapshots for peer in peers):  # else old teachers are better than none
            for peer in [peer for peer in self.snapshots if peer not in peers]:
                self._drop(peer, step=step)
        self._look_ahead(step)

    def _look_ahead(self, step: int) -> None:
        """Let the exchange look for those that are due at the reload after `step`."""
        self.exchange.follow(self.peers((step // self.interval + 1) * self.interval))

    def _use_all(self, taken: Sequence[Snapshot], *, step: int) -> None:
        for snapshot in taken:
            self._use(snapshot, step=step)
            self.num_swaps += 1
            self.swaps.append((step, snapshot.group, snapshot.incarnation, snapshot.step, snapshot.sha256))

    def _use(self, snapshot: Snapshot, *, step: int) -> None:
        teacher = self.panel.reusable(snapshot.group)
        if teacher is None:
            teacher = self.build_peer(snapshot.group)
            teacher.zero_grad(set_to_none=True)
        load_full_state(teacher, snapshot.weights)
        self.panel.place(snapshot.group, teacher, step=step)
        self.snapshots[snapshot.group] = snapshot
        self._unchanged[snapshot.group] = 0
        self._taken_at[snapshot.group] = time.monotonic()

    def _drop(self, peer: int, *, step: int) -> None:
        self.panel.remove(peer, step=step)
        del self.snapshots[peer]
        self._unchanged.pop(peer, None)

    def hear(self, step: int) -> None:
        """Its group's workers, in processes of their own, have listened at `step`."""
        self._heard_at, self.heard = step, True

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        self._heard_at = step
        soft = None if step < self.burn_in else self.panel.predict(step, worker, batch)
        if soft is not None and not self.lockstep:
            # A peer on its way to divergence, or of another shape, must not take this group along.
            alike = [values for values in soft.values if values.shape == logits.shape]
            # Of cut predictions the classes that are dropped have minus infinity.
            cut = self.panel.kept is not None
            finite = tuple(values for values in alike if bool((values < math.inf if cut else values.isfinite()).all()))
            self.ignored += len(soft.values) - len(finite)
            soft = Soft(finite) if finite else None
        self.heard = self.heard or soft is not None
        return rising(soft, step=step, burn_in=self.burn_in, ramp=self.ramp)

    def summary(self) -> dict[str, Any]:
        """How often the teachers were exchanged and whether any was ever heard; if none was, the exchange's last words."""
        reason = self.exchange.log().get("exchange_reason")
        return {
            "teacher_swaps": self.num_swaps,
            "taught": self.heard,
            **({"exchange_reason": reason} if reason and not self.heard else {}),
        }

    def log(self) -> dict[str, Any]:
        """What a row of metrics.jsonl says of the teachers; see odist.run.log."""
        swaps, self.swaps = self.swaps, []
        waited = self.taking.take_seconds_waited()
        stale = [] if self.lockstep else sorted(filter(self._is_stale, self._unchanged))
        found = {
            **({"swaps": swaps} if swaps else {}),
            **({"waited_seconds": round(waited, 3)} if self.lockstep and self.exchange.durable else {}),
            **({"teacher_stale": stale} if stale else {}),
            **({"teacher_ignored": self.ignored} if self.ignored else {}),
            **self.exchange.log(),
        }
        if not self.snapshots:
            return {**found, "teacher_age_steps": None, "teacher_age_seconds": None}
        return {
            **found,
            "teacher_age_steps": self._heard_at - min(snapshot.step for snapshot in self.snapshots.values()),
            "teacher_age_seconds": round(time.time() - min(s.time for s in self.snapshots.values()), 3),
        }

    def _is_stale(self, peer: int) -> bool:
        waited = time.monotonic() - self._taken_at[peer]
        return self._unchanged[peer] >= STALE_REFRESHES and waited >= STALE_SECONDS

    def state_dict(self) -> dict[str, Any]:
        """The panel's carry, the snapshots in use and this group's own that peers may still ask for.

        Those of an exchange that outlives this process too: its folder may be gone when the run is continued. A peer
        can be `lag` intervals behind and then asks for a snapshot of `lag` intervals before. The weights of this very
        step are in the checkpoint anyway; the trainer publishes them again.
        """
        newest = self._now // self.interval * self.interval
        back = 0 if not self.lockstep else 2 * self.lag + 1 if self.exchange.durable else self.lag + 1
        steps = [newest - number * self.interval for number in reversed(range(back))]
        published = [self.exchange.fetch(self.group, step=step) for step in steps if step != self._now]
        return {
            "panel": self.panel.state_dict(),
            "now": self._now,
            "heard_at": self._heard_at,
            "heard": self.heard,
            "num_swaps": self.num_swaps,
            "swaps": self.swaps,
            "snapshots": [as_dict(snapshot) for snapshot in self.snapshots.values()],
            "published": [as_dict(snapshot) for snapshot in published if snapshot is not None],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for saved in state["published"]:
            self.exchange.publish(saved["step"], saved["weights"])
        for saved in state["snapshots"]:
            self._use(Snapshot(**saved), step=0)
        self.panel.load_state_dict(state["panel"])
        self._heard_at = state["heard_at"]
        self.swaps = state["swaps"]
        self.num_swaps = state.get("num_swaps", len(self.swaps))  # older checkpoints have neither
        self.heard = state.get("heard", bool(self.snapshots))
        self._now = state.get("now", 0)  # nor this
        self._look_ahead(self._now)
