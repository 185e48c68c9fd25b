"""The processes of a job that torchrun, srun or Kubernetes has started, and how they hear each other beside training.

Rank 0 composes, makes the run folder and gives the order; the others wait for it. What is said travels through the store by
which torch's processes find each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from odist.config.schema import Config
from odist.engine.devices import backend
from odist.errors import Interrupted, LostWorkers, OdistError
from odist.launch.ranks import Ranks
from odist.launch.worker import lay_out_groups, time_limit
from odist.mesh import Mesh

SECONDS_TO_GATHER = 600.0  # for all processes of a job to be there
SECONDS_TO_HEAR = 20.0  # for the others to hear that nothing is to be done, before rank 0 leaves with the store
PAUSE = 0.1  # seconds between two looks into the store


class Job:
    """This process's end of what the processes of a job tell each other.

    Raises LostWorkers if the others do not come.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.leads = ranks.rank == 0
        self.ordered = False  # whether the others have been told what to do
        if ranks.one_machine and any(name == "lo" for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # needs no name and no network
        # An engine may keep the store while it starts the processes again; what was said before is not for them.
        self._store: Any = dist.PrefixStore(f"odist-{ranks.attempt}", _meet(ranks))  # type: ignore[attr-defined]

    def give_order(self, order: dict[str, Any]) -> None:
        """Tell the other processes what to do. order: what JSON can say"""
        self._store.set("order", json.dumps(order))
        self.ordered = True

    def dismiss(self, code: int) -> None:
        """Tell the other processes to leave with this exit code, and wait until they have heard it."""
        self.give_order({"exit": code})
        deadline = time.monotonic() + SECONDS_TO_HEAR
        while self._store.add("heard", 0) < self.ranks.size - 1 and time.monotonic() < deadline:
            time.sleep(PAUSE / 10)

    def order(self, *, stop: Callable[[], bool]) -> dict[str, Any]:
        """What rank 0 says, waited for. Raises Interrupted if `stop` becomes true, LostWorkers if rank 0 is gone."""
        with self._hearing():
            while not self._store.check(["order"]):
                if stop():
                    raise Interrupted("stopped before it began; the same command continues it.")
                time.sleep(PAUSE)
            order: dict[str, Any] = json.loads(self._store.get("order"))
            self._store.add("heard", 1)
        return order

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's DistError
            raise LostWorkers(f"rank {self.ranks.rank}: rank 0, or the engine that started it, is gone.") from error

    def connect(self, config: Config) -> Mesh:
        """Make torch's process groups and this process's place among them: group by group, each with its replicas."""
        limit = time_limit(config)
        dist.init_process_group(
            backend(config.launch.device),
            store=self._store,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            timeout=limit,
        )
        return lay_out_groups(config)

    def disconnect(self) -> None:
        """Give torch's process groups up, once nothing more is to be computed together."""
        dist.destroy_process_group()

    def report(self, group: int, error: OdistError | None) -> None:
        """Tell the other processes how a group has ended; None: well. What is said first counts."""
        said = {} if error is None else {"kind": type(error).__name__, "text": str(error)}
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(f"end-{group}", "", json.dumps(said))

    def ending(self, group: int) -> dict[str, str] | None:
        """How a group has ended: empty if well, or with `kind` and `text` of its error; None if it has not."""
        with self._hearing():
            return json.loads(self._store.get(f"end-{group}")) if self._store.check([f"end-{group}"]) else None

    def says_first(self, text: str) -> bool:
        """Whether no other process has said so yet."""
        try:
            return self._store.add(f"said-{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
        except RuntimeError:
            return True


def _meet(ranks: Ranks) -> Any:
    """The store that the processes of a job share. Raises LostWorkers if they do not find each other."""
    if ranks.size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    place, limit = f"tcp://{ranks.address}:{ranks.port}", timedelta(seconds=SECONDS_TO_GATHER)
    try:
        meeting = dist.rendezvous(place, rank=ranks.rank, world_size=ranks.size, timeout=limit)  # type: ignore[attr-defined]
        store, _, _ = next(meeting)
    except (RuntimeError, ValueError) as error:
        raise LostWorkers(
            f"rank {ranks.rank} of {ranks.size}: the job's processes do not find each other at {ranks.address}:{ranks.port} "
            f"(MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]}"
        ) from error
    return store
