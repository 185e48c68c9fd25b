"""Asynchronous SGD: a server keeps the weights, workers in processes of their own pull them and push gradients.

Source: Dean et al. 2012, "Large scale distributed deep networks" (downpour SGD, a pull before every push). The server lives in
the group's own process, with a thread and a two-rank group for every worker, so that a dead worker is noticed at once and hurts
nobody. Which gradient is used when is said by odist.strategies.turns. A step of the trainer is over when its number of batches
is in the weights, and nothing is used while the trainer evaluates or saves; so the log of events alone decides the bits. With
shards (odist.strategies.shards) the server keeps a share of the weights, the running statistics and all decisions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from odist.errors import LostWorkers, UserError
from odist.mesh import Mesh
from odist.optim import Optimizer, total_norm
from odist.strategies import ParameterServerOptions
from odist.strategies.base import Losses, StrategySetup, Unit, copy_into, mean_buffers
from odist.strategies.events import EventLog, event_file
from odist.strategies.shards import ShardEnd
from odist.strategies.share import Share, divided, merged
from odist.strategies.turns import Turn, Turns
from odist.strategies.wire import Link, from_bytes, packed, packed_size, receive_gradients, to_bytes, unpacked
from odist.tasks.base import Batch

SECONDS_BETWEEN_BEATS = 0.5


@dataclass
class Push:
    """What a worker brings: gradients of the server's share, statistics and counters after its forward, losses, and what its
    model carries on."""

    gradients: list[Tensor | None]
    buffers: list[Tensor]
    losses: Losses
    carry: Any


class ParameterServer:
    """The server of one group, as the strategy of the process that evaluates, saves and publishes.

    Running statistics and counters are those of the worker that pushed last: each continues those that it pulled.
    shards: the ends of the other processes that have shares of the weights, see `begin`
    """

    spreads_workers = False

    @classmethod
    def of(cls, options: ParameterServerOptions, setup: StrategySetup) -> Any:
        if setup.links:
            from odist.strategies.pulling import Pulling

            return Pulling(setup.mesh, setup.links, used=options.used(setup.mesh.workers))
        events = None if setup.folder is None else event_file(setup.folder, setup.mesh.group.index)
        return cls(
            setup.mesh, options.turns(setup), events=EventLog(events), batch=setup.batch, num_shards=options.shards
        )

    def __init__(self, mesh: Mesh, turns: Turns, *, events: EventLog, batch: int = 0, num_shards: int = 1) -> None:
        self.mesh = mesh
        self.turns = turns
        self.events = events
        self.batch = batch
        self.num_shards = num_shards
        self.shards: list[ShardEnd] = []
        self.per_step = turns.used or mesh.workers
        self.carry: dict[int, Any] = {}
        self._losses: list[Losses] = []
        self._staleness: list[int] = []  # of the gradients since the last row of the log
        self._arrived: dict[int, Push] = {}
        self._outgoing: dict[int, Tensor] = {}  # weights as each worker was last sent them
        self._target = 0  # batches until which gradients are used
        self._settled = 0  # version of the shards' weights that the model has
        self._over = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._step = 0
        self.beat: Callable[[], object] = _silent  # a sign of life; silent workers are noticed by their links

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = list(model.parameters())
        self.buffers = list(model.buffers())
        if self.num_shards > len(self.parameters):
            raise UserError(
                f"algorithm.shards={self.num_shards}: the model has {len(self.parameters)} tensors, and a shard keeps whole ones. "
                f"Type algorithm.shards={len(self.parameters)} or less."
            )
        if self.num_shards > 1 and self.parameters[0].device.type != "cpu":
            raise UserError(
                f"algorithm.shards={self.num_shards} with launch.device={self.parameters[0].device.type}: shards keep weights in the "
                "host's memory. Type algorithm.shards=1 or launch.device=cpu."
            )
        self.share = Share(model, optimizer, shard=0, num_shards=self.num_shards)

    def begin(self, shards: Sequence[tuple[Link, int]] = ()) -> None:
        """Begin the log, and hand the shards their shares as they are now.

        shards: of each, the link to its process and the number that the system gives that
        """
        if self.events.size == 0:
            self.events.write("start", workers=self.mesh.workers, batch=self.batch, used=self.turns.used)
        shares = divided(self.parameters, self.num_shards)[1:]
        for shard, ((link, pid), share) in enumerate(zip(shards, shares, strict=True), 1):
            self.events.write("shard", shard=shard, pid=pid)
            name = f"shard {shard} of group {self.mesh.group.index}'s server"
            self.shards.append(ShardEnd(link, share, name=name))
            self.shards[-1].load(self.optimizer.state_dict(only=share))
        self.optimizer.forget(self.share.others)

    def units(self, step: int) -> Sequence[Unit]:
        """None: the workers' processes compute them."""
        return []

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        return []

    def worker(self, worker: int) -> AbstractContextManager[None]:
        raise RuntimeError("the workers of a parameter server are processes of their own")

    def step(self, step: int) -> None:
        """Let gradients make updates until those of `step` are in the weights.

        Raises what a server thread has raised, and LostWorkers if too few workers are left.
        """
        with self._changed:
            self._step = step
            self._target = (step + 1) * self.per_step
            self._changed.notify_all()
            while self.turns.batches < self._target and self._failure is None:
                self._changed.wait(SECONDS_BETWEEN_BEATS)
                self.beat()
            if self._failure is not None:
                raise self._failure
            if self.shards and self.optimizer.config.clip_norm is None:
                self.optimizer.hear_norm(self._norm())

    def settle(self) -> None:
        """Fetch what other processes have of the weights."""
        with self._changed:
            if self._settled < self.turns.version:
                for shard in self.shards:
                    shard.fetch()
                self._settled = self.turns.version

    def take_losses(self) -> list[Losses]:
        """What the workers have reported since the last call, in the order of their gradients."""
        losses, self._losses = self._losses, []
        return losses

    def log(self) -> dict[str, Any]:
        """Staleness since the last row of the log, in updates; gradients dropped and workers lost so far."""
        found, self._staleness = self._staleness, []
        return {
            **({"staleness": sum(found) / len(found), "staleness_max": max(found)} if found else {}),
            **({"dropped": self.turns.dropped} if self.turns.dropped else {}),
            **({"lost_workers": sorted(self.turns.gone)} if self.turns.gone else {}),
        }

    def serve(self, worker: int, link: Link, *, incarnation: int, pid: int) -> None:
        """Give weights to a worker and use its gradients until `close`; one thread a worker calls it.

        incarnation, pid: of its process, for the log

        Raises RuntimeError when the worker is lost; what it had under way is forgotten.
        """
        with self._changed:
            self.events.write("join", worker=worker, incarnation=incarnation, pid=pid)
            for shard in self.shards:
                shard.join(worker, incarnation)
        fresh = True
        try:
            while self._serve_batch(worker, link, incarnation=incarnation, fresh=fresh):
                fresh = False
        except RuntimeError:
            with self._changed:
                if not self._over:
                    self.turns.lose(worker)
                    self.events.write("lost", worker=worker, incarnation=incarnation)
                    self._changed.notify_all()
                    raise

    def _serve_batch(self, worker: int, link: Link, *, incarnation: int, fresh: bool) -> bool:
        """One pull and one push; False when training is over."""
        with self._changed:
            self.turns.ask(worker)
            if not self._wait(lambda: self.turns.may_begin(worker)):
                return False
            turn = self.turns.begin(worker)
            self._changed.notify_all()  # it is the next one's turn
            self.events.write("pull", worker=worker, batch=turn.batch, version=turn.pulled, incarnation=incarnation)
            for shard in self.shards:
                shard.give(worker)
            weights = packed([*self.share.parameters, *self.buffers], into=self._outgoing.get(worker))
            self._outgoing[worker] = weights
            carry = to_bytes(self.carry.get(worker) if fresh else None)
            step = self._step
        link.send_numbers(turn.batch, turn.pulled, step, len(carry))
        link.send(weights)
        link.send(carry)
        push = self._receive(link)
        with self._changed:
            if not self._wait(lambda: self.turns.batches < self._target and self.turns.may_arrive(worker)):
                return False
            self._use(worker, turn, push)
            self._changed.notify_all()
        return True

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Wait for one's turn; False when training is over."""
        self._changed.wait_for(lambda: self._over or ready())
        return not self._over

    def _receive(self, link: Link) -> Push:
        numbers = link.receive(torch.empty(len(fields(Losses)), dtype=torch.float64))
        [size] = link.receive_numbers(1)
        gradients = receive_gradients(link, self.share.parameters)
        like = [torch.empty(buffer.shape, dtype=buffer.dtype, device="meta") for buffer in self.buffers]
        buffers = unpacked(link.receive_bytes(packed_size(self.buffers)), like)
        carry = from_bytes(link.receive_bytes(size))
        if self.shards:
            link.receive_numbers(1)  # every shard has its part, too
        return Push(gradients, buffers, Losses.from_numbers(numbers), carry)

    def _use(self, worker: int, turn: Turn, push: Push) -> None:
        """A gradient has come: make an update of it, keep it until the others are there, or drop it."""
        made = self.turns.arrive(worker)
        self.carry[worker] = push.carry
        if made is None:
            self.events.write("drop", worker=worker, batch=turn.batch, pulled=turn.pulled)
            for shard in self.shards:
                shard.forget(worker, turn.batch)
            return
        self._arrived[worker] = push
        if not made:
            return
        pushes = [self._arrived.pop(each.worker) for each in made]
        for each, own in zip(made, pushes, strict=True):
            self.events.write("update", worker=each.worker, batch=each.batch, pulled=each.pulled, version=each.version)
            self._staleness.append(each.staleness)
            self._losses.append(own.losses)
        try:
            self._update(made, pushes)
        except ConnectionError as error:  # the update is not whole, so nothing may be saved any more
            self._failure = error
            raise

    def _update(self, made: Sequence[Turn], pushes: Sequence[Push]) -> None:
        for shard in self.shards:
            shard.use([(turn.worker, turn.batch) for turn in made])
        self.share.use([push.gradients for push in pushes])
        copy_into(self.buffers, mean_buffers([push.buffers for push in pushes]))
        step, within = divmod(self.turns.batches - len(pushes), self.per_step)
        fraction = within / self.per_step
        norm = self._norm() if self.shards and self.optimizer.config.clip_norm is not None else None
        for shard in self.shards:
            shard.update(step, fraction=fraction, norm=norm)
        self.optimizer.update(step, fraction=fraction, norm=norm)

    def _norm(self) -> float:
        """Norm of the gradient over all shares."""
        norms = self.optimizer.norms()
        for shard in self.shards:
            norms += shard.norms(len(norms))
        return total_norm(norms)

    def fail(self, error: BaseException) -> None:
        """End the training with an error, from a thread."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def give_up(self, worker: int) -> None:
        """Go on without a worker for good, if enough are left."""
        with self._changed:
            self.turns.lose(worker, for_good=True)
            left, needed = self.mesh.workers - len(self.turns.gone), self.turns.used or 1
            self._changed.notify_all()
        if left < needed:
            self.fail(
                LostWorkers(
                    f"group {self.mesh.group.index} has {left} of {self.mesh.workers} workers left and needs {needed}. "
                    "The same command continues it from the last checkpoint."
                )
            )

    def close(self) -> None:
        """Let the threads of all workers end."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def state_dict(self) -> dict[str, Any]:
        with self._changed:
            return {
                "optimizer": merged([self.optimizer.state_dict(), *(shard.state_dict() for shard in self.shards)]),
                "turns": self.turns.state_dict(),
                "carry": dict(self.carry),
                "events": self.events.size,
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.turns.load_state_dict(state["turns"])
        self.carry = state["carry"]
        self.events.size = state["events"]
        self._target = self.turns.batches
        self._settled = self.turns.version


def _silent() -> None:
    pass
