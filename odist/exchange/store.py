"""The exchange through a store: a folder, or anything else that fsspec can open.

    <root>/group-0/step-0000000400-<nonce>.safetensors    weights, immutable
    <root>/group-0/step-0000000400-<nonce>.json           manifest, written last: the commit record

There is no pointer to the newest, so none can tear: readers list manifests, verify, and remember what
they rejected and why (shelf.py). A store may be slow, away or hang: everything is written in a thread, and a
training step pays for one copy. Teachers decide what to ask for and how long to wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from odist.errors import LostWorkers
from odist.exchange import StoreOptions
from odist.exchange.background import Background
from odist.exchange.base import ExchangeSetup, Snapshot, Weights, fingerprint
from odist.exchange.poller import Poller
from odist.exchange.publisher import Publisher
from odist.exchange.shelf import NO_STEP, Shelf, printable
from odist.stores import is_local, open_store

HEADER_BYTES = 4096  # more than safetensors spends on the name and shape of a tensor
SECONDS_TO_OPEN = 20.0  # lock-step: for the first sign of life of a store
SECONDS_TO_START = 3.0  # freshest: for the same, and for the first look, before training begins without it
SECONDS_TO_CLOSE = 10.0  # for what is still being written at the end
SECONDS_TO_RETRY = 1.0  # between two tries to write what could not be written


class StoreExchange:
    """One group's end of an exchange through a store.

    group, peers: this group and those that it learns from; readers: those that learn from it, None for its peers; url: root of the store; run: id of the run, so that
    snapshots of another run in the same place are rejected
    models: fingerprint that the weights of a group must have, by group; None takes any
    largest: bytes that the file of a group's weights may have, by group; num_steps: of the run; None: any number
    keep: own snapshots kept under `freshest`; history: makes it lock-step, where everything that was
    published can be read some time, and nothing is deleted that a restarted peer may still ask for,
    `history` steps behind the oldest of all groups' last checkpoints
    remember: own snapshots that `fetch` gives without the store, for this group's checkpoints
    poll: seconds between two looks for fresh snapshots; None looks only when asked (lock-step)
    read_only: publishes nothing (a group's processes beside its writer)
    last_checkpoint: tells the step of this group's own newest checkpoint
    patience: seconds, at most SECONDS_TO_OPEN, in which a store must be opened under lock-step, or LostWorkers is
    raised; `freshest` goes on without it

    `fetch` by step and `flush` read and write in the caller's thread and may hang as long as the store does.
    """

    durable = True

    @classmethod
    def of(cls, options: StoreOptions, setup: ExchangeSetup) -> StoreExchange:
        schedule = setup.schedule
        readers = setup.peers if schedule.readers is None else schedule.readers
        weights = {group: setup.weights_of(group) for group in {setup.group, *setup.peers, *readers}}
        return cls(
            setup.group,
            peers=setup.peers,
            url=options.url or str(setup.folder / "exchange"),
            run=setup.run,
            readers=readers,
            models={group: fingerprint(own) for group, own in weights.items()},
            largest={
                group: sum(tensor.nbytes + HEADER_BYTES for tensor in own.values()) + HEADER_BYTES
                for group, own in weights.items()
            },
            num_steps=setup.num_steps,
            keep=options.keep,
            remember=2 * schedule.lag + 1 if schedule.lockstep else 0,
            history=(schedule.lag + 2) * schedule.interval if schedule.lockstep else 0,
            poll=None if schedule.lockstep or not setup.is_writer else options.poll,
            last_checkpoint=setup.last_checkpoint,
            read_only=not (setup.is_writer and setup.publishes),
            patience=schedule.timeout,
        )

    def __init__(
        self,
        group: int,
        *,
        peers: Sequence[int],
        url: str,
        run: str,
        readers: Sequence[int] | None = None,
        models: Mapping[int, str] | None = None,
        largest: Mapping[int, int] | None = None,
        num_steps: int | None = None,
        keep: int = 3,
        history: int = 0,
        remember: int = 0,
        poll: float | None = None,
        last_checkpoint: Callable[[], int] = lambda: NO_STEP,
        read_only: bool = False,
        patience: float = SECONDS_TO_OPEN,
    ) -> None:
        self.group, self.peers, self.run, self.url = group, list(peers), run, url
        self.history, self.remember = history, remember
        self.publish_failed = 0
        self.problems = 0  # looks that ended in an error
        self.last_problem = ""
        fs, root = open_store(url)
        self.shelf = Shelf(fs, root, run=run, local=is_local(fs), models=models, largest=largest, num_steps=num_steps)
        self.publisher = Publisher(
            self.shelf,
            group=group,
            readers=peers if readers is None else readers,
            run=run,
            keep=keep,
            history=history,
            last_checkpoint=last_checkpoint,
        )
        self.poller: Poller | None = None
        self._lock = threading.Lock()
        self._own: dict[int, Snapshot] = {}  # remembered
        self._waiting: dict[int, Weights] = {}  # published, not yet in the store
        self._pending: Future[None] | None = None
        self._writer = Background("publish")
        self._tried_at = 0.0
        self._closed = threading.Event()
        self.read_only = read_only
        self._opened = read_only
        self._refused = False  # by a store that answered
        if not read_only:
            self._start(patience)
        if poll is not None:
            self.poller = Poller(self.shelf, peers=peers, seconds=poll, note=self._note)
            if read_only:  # joins a group that may have had teachers for long: not without any until the next reload
                self.poller.looked.wait(SECONDS_TO_START)

    @property
    def incarnation(self) -> int:
        """How often the group had been started before."""
        return self.publisher.incarnation

    def _start(self, patience: float) -> None:
        seconds = min(patience, SECONDS_TO_OPEN) if self.history else SECONDS_TO_START
        opening = self._writer.submit(lambda: self._open_within(seconds))
        with contextlib.suppress(TimeoutError):
            opening.result(timeout=seconds)
        if not self._opened and self.history:
            self.close()
            raise LostWorkers(
                f"the exchange {self.url} cannot be opened: {self._why() or f'no answer within {seconds:g} s'}. "
                "Check exchange.url and what it leads to; the same command continues."
            )

    def _open_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._open() and not self._refused and time.monotonic() < deadline and not self._closed.wait(0.5):
            pass

    def _open(self) -> bool:
        """Make this group's folder ready for writing; whether it is. Done once, in the writer's thread."""
        if self._opened:
            return True
        try:
            self.publisher.open()
        except Exception as error:
            self._note(error)
            self._refused = isinstance(
                error, FileNotFoundError | PermissionError | NotADirectoryError | FileExistsError
            )
            return False
        self._opened = True
        return True

    def publish(self, step: int, weights: Weights) -> None:
        """Copy the weights now and write them in the background; a failure is counted, never raised.

        Of snapshots that a slow store has not taken yet only the newest is kept; under lock-step all are,
        which are few, since peers that cannot read them hold this group up.
        """
        if self.read_only:
            return
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
        with self._lock:
            if not self.history:
                self._waiting.clear()
            self._waiting[step] = copies
            if self.remember:
                self._own[step] = Snapshot(self.group, step, copies, time.time(), self.incarnation)
                for old in sorted(self._own)[: -self.remember]:
                    del self._own[old]
        self._pending = self._writer.submit(self._write_waiting)

    def flush(self) -> bool:
        """Try once more to write what could not be written; whether peers can now read all that was published."""
        pending = self._pending
        if pending is not None:
            pending.result()
        if self._waiting and time.monotonic() - self._tried_at >= SECONDS_TO_RETRY:
            self._pending = self._writer.submit(self._write_waiting)
            self._pending.result()
        return not self._waiting

    def _write_waiting(self) -> None:
        with self._lock:
            waiting = sorted(self._waiting.items())
        for step, weights in waiting:
            written = self._write(step, weights)
            if written or not self.history:
                with self._lock:
                    if self._waiting.get(step) is weights:
                        del self._waiting[step]
            if not written:
                break  # a store that takes one only does not take the next: peers wait for the first
        self._tried_at = time.monotonic()

    def _write(self, step: int, weights: Weights) -> bool:
        if not self._open():
            self.publish_failed += 1
            return False
        for _ in range(2):
            try:
                self.publisher.write(step, weights)
            except Exception as error:  # safetensors and every back end of fsspec have kinds of their own
                self.last_problem = self._words(error)
                self.publisher.delete_old()  # a full disk: make room, then try once more
            else:
                self.publisher.delete_old()
                return True
        self.publish_failed += 1
        return False

    def follow(self, peers: Sequence[int]) -> None:
        """See `Exchange`."""
        if self.poller is not None:
            self.poller.follow(peers)

    def fetch(
        self, peer: int, *, step: int | None = None, newer_than: tuple[int, int] | None = None
    ) -> Snapshot | None:
        """See `Exchange`; by step it reads the store, by age it returns what the background found."""
        if step is None:
            fresh = None if self.poller is None else self.poller.newest(peer)
            return fresh if fresh is not None and (newer_than is None or fresh.age > newer_than) else None
        if peer == self.group:
            with self._lock:
                return self._own.get(step)
        try:
            return self.shelf.newest([m for m in self.shelf.manifests(peer) if m.step == step])
        except Exception as error:
            self._note(error)
            return None

    def _note(self, error: Exception) -> None:
        """A store that is away now makes the teacher staler or the wait longer, and nothing else."""
        self.problems += 1
        self.last_problem = self._words(error)

    def _words(self, error: Exception) -> str:
        return printable(f"{self.url}: {type(error).__name__}: {error}")

    def log(self) -> dict[str, Any]:
        """Failures so far, for the log; rejected entries of the store also by kind, see `odist.exchange.shelf.Rejected`."""
        kinds = Counter(rejection.kind for rejection in list(self.shelf.rejected.values()))
        counts: dict[str, Any] = {
            "exchange_rejected": kinds.total(),
            "exchange_rejections": dict(sorted(kinds.items())),
            "exchange_problems": self.problems,
            "publish_failed": self.publish_failed,
            "publish_superseded": self.publisher.superseded_by,
        }
        found = {name: count for name, count in counts.items() if count}
        reason = self._why()
        return {**found, "exchange_reason": reason} if reason else found

    def _why(self) -> str:
        rejected = [f"{name}: {found.reason}" for name, found in list(self.shelf.rejected.items())[-1:]]
        return "; ".join(filter(None, [*rejected, self.last_problem, self.shelf.stuck()]))

    def close(self) -> None:
        """Finish what is being written, within SECONDS_TO_CLOSE, and stop looking."""
        if self._pending is not None:
            with contextlib.suppress(TimeoutError):
                self._pending.result(timeout=SECONDS_TO_CLOSE)
        self._closed.set()
        if self.poller is not None:
            self.poller.close()
        self._writer.close()
