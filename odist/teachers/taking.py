"""Which of its peers' snapshots a group takes: in lock-step those that were agreed, which it waits for, else whatever is newest."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from odist.errors import Interrupted, LostWorkers
from odist.exchange.background import Background
from odist.exchange.base import Exchange, Schedule, Snapshot
from odist.mesh import Mesh


class Taking:
    """A group's way to the snapshots of others; all of its processes take the same.

    group: its index; stop: asked while it waits, whether the run is to end
    """

    def __init__(
        self, exchange: Exchange, *, group: int, schedule: Schedule, mesh: Mesh, stop: Callable[[], bool]
    ) -> None:
        self.exchange = exchange
        self.group = group
        self.lockstep, self.timeout = schedule.lockstep, schedule.timeout
        self.mesh = mesh
        self.stop = stop
        self._waited = 0.0  # seconds

    def take(self, step: int, *, peers: Sequence[int], held: Mapping[int, Snapshot]) -> list[Snapshot]:
        """The peers' snapshots of `step`, waited for; under freshest those newer than `held`, of any step.

        Raises Interrupted or LostWorkers if the wait ends otherwise.
        """
        return self._same_everywhere(
            lambda: self._agreed(step, peers=peers) if self.lockstep else self._freshest(peers, held=held)
        )

    def wait_for_readers(self) -> None:
        """Return when the peers can read all that this group has published. Raises as `take`."""
        self._same_everywhere(self._flushed)

    def take_seconds_waited(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _same_everywhere(self, look: Callable[[], list[Snapshot]]) -> list[Snapshot]:
        """What `look` finds in one process of the group, which hands it to the others.

        So all processes leave the wait alike and use the same weights, whatever the store shows to each.
        """
        found: list[Snapshot] = []
        outcome, text = 0, ""
        if self.mesh.is_writer:
            try:
                found = look()
            except (Interrupted, LostWorkers) as error:
                outcome, text = error.exit_code, str(error)
        outcome, text, taken = self.mesh.state_from_writer((outcome, text, [as_dict(snapshot) for snapshot in found]))
        if outcome:
            raise (Interrupted if outcome == Interrupted.exit_code else LostWorkers)(text)
        return [Snapshot(**one) for one in taken]

    def _agreed(self, step: int, *, peers: Sequence[int]) -> list[Snapshot]:
        """Each of these peers' snapshot of `step`, waited for.

        It is taken as it was agreed, even with numbers that are not finite: that peer has diverged, and so has this run.
        """
        found: dict[int, Snapshot] = {}

        def look() -> bool:
            self.exchange.flush()  # a peer that cannot read this group's weights does not come to `step`
            for peer in peers:
                snapshot = None if peer in found else self.exchange.fetch(peer, step=step)
                if snapshot is not None:
                    found[peer] = snapshot
            return len(found) == len(peers)

        def missing() -> str:
            return f"group {next(peer for peer in peers if peer not in found)}"

        self._wait(look, lambda: f"{missing()} has not published its weights of step {step}")
        return [found[peer] for peer in peers]

    def _freshest(self, peers: Sequence[int], *, held: Mapping[int, Snapshot]) -> list[Snapshot]:
        """Whatever of these peers is newer than what is held."""
        ages = {peer: held[peer].age if peer in held else None for peer in peers}
        found = [self.exchange.fetch(peer, newer_than=ages[peer]) for peer in peers]
        return [snapshot for snapshot in found if snapshot is not None]

    def _flushed(self) -> list[Snapshot]:
        self._wait(self.exchange.flush, lambda: f"the weights of group {self.group} cannot be written for its peers")
        return []

    def _wait(self, look: Callable[[], bool], problem: Callable[[], str]) -> None:
        """Return when `look` says yes, asked again and again in a thread of its own, which a store may hold for ever.

        Interrupted as soon as `stop` says so, LostWorkers after `timeout` seconds; `problem` says what was waited for.
        """
        over = threading.Event()

        def ask() -> None:
            pause = 0.001
            while not over.is_set() and not look():
                over.wait(pause)
                pause = min(2 * pause, 0.05)

        if not self.exchange.durable:
            if not look():
                raise LostWorkers(f"{problem()}.")
            return
        asking, began = Background("exchange"), time.monotonic()
        deadline = began + self.timeout
        answer = asking.submit(ask)
        try:
            while not concurrent.futures.wait([answer], timeout=0.02).done:
                if self.stop():
                    raise Interrupted(f"stopped while it waited: {problem()}.")
                if time.monotonic() > deadline:
                    raise LostWorkers(
                        f"{problem()} within {self.timeout:g} s (exchange.timeout). {self._reason()}"
                        "The state is saved; the same command continues."
                    )
            answer.result()
        finally:
            self._waited += time.monotonic() - began
            over.set()
            asking.close()

    def _reason(self) -> str:
        reason = self.exchange.log().get("exchange_reason")
        return f"The exchange says: {reason}. " if reason else ""


def as_dict(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot's fields, for a checkpoint and for the group's other processes."""
    return dict(vars(snapshot))
