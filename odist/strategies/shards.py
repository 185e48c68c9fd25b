"""Shards: processes that keep parts of a parameter server's weights, and do what the group's server says in its order.

Source: Dean et al. 2012, "Large scale distributed deep networks", section 4.1; there each shard goes on by itself, here all have the
same version: the server decides whose gradient is used when, and its words reach every shard in one order. Gradients and weights
travel between workers and shards; of a batch the server hears that every shard has its part, and only then it counts.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from odist.strategies.base import copy_into
from odist.strategies.share import Share
from odist.strategies.wire import Link, from_bytes, packed, packed_size, receive_gradients, to_bytes, unpacked

Connect = Callable[[int, int], Link]  # worker, incarnation -> the link to that process


class Word(IntEnum):
    """What a server says to its shards; numbers follow."""

    LOAD = 0  # size of the optimizer's state; then weights and state
    JOIN = 1  # worker, incarnation: a new process has begun
    GIVE = 2  # worker: send it the weights as they are now
    USE = 3  # worker, batch, worker, batch, ...: the next update is of these gradients
    UPDATE = 4  # step of the trainer; then the fraction of it that is done and the norm of the whole gradient, or nan
    FORGET = 5  # worker, batch: its gradient came too late
    NORMS = 6  # asks for the norms of the gradients
    WEIGHTS = 7  # asks for the weights
    STATE = 8  # asks for the optimizer's state


class ShardEnd:
    """The server's end of one shard; one thread at a time may use it.

    parameters: of the server's model that the shard keeps; name: for messages
    Every method raises ConnectionError when the shard has gone: a crash of the group, which continues from its last checkpoint.
    """

    def __init__(self, link: Link, parameters: Sequence[nn.Parameter], *, name: str) -> None:
        self.link = link
        self.parameters = parameters
        self.name = name

    def load(self, state: dict[str, Any]) -> None:
        """Give it its weights and the optimizer's state of them."""
        content = to_bytes(state)
        with self._telling(Word.LOAD, len(content)):
            self.link.send(packed(self.parameters))
            self.link.send(content)

    def join(self, worker: int, incarnation: int) -> None:
        """Tell it of a worker's new process, which it connects to."""
        self._tell(Word.JOIN, worker, incarnation)

    def give(self, worker: int) -> None:
        """Have it send a worker the weights as they are now."""
        self._tell(Word.GIVE, worker)

    def use(self, batches: Sequence[tuple[int, int]]) -> None:
        """Say whose gradients the next update is of. batches: (worker, number of its batch), in the order of their sum"""
        self._tell(Word.USE, *(number for pair in batches for number in pair))

    def update(self, step: int, *, fraction: float, norm: float | None) -> None:
        """As `Optimizer.update`."""
        with self._telling(Word.UPDATE, step):
            self.link.send(torch.tensor([fraction, math.nan if norm is None else norm], dtype=torch.float64))

    def forget(self, worker: int, batch: int) -> None:
        """Say that the gradient of a batch came too late."""
        self._tell(Word.FORGET, worker, batch)

    def norms(self, count: int) -> Tensor:
        """Norms of the gradients of all `count` parameters, 0 for those of other shares: float64 [count]."""
        with self._telling(Word.NORMS):
            return self.link.receive(torch.empty(count, dtype=torch.float64))

    def fetch(self) -> None:
        """Put its weights into the server's model."""
        with self._telling(Word.WEIGHTS):
            weights = self.link.receive_bytes(packed_size(self.parameters))
        copy_into([parameter.detach() for parameter in self.parameters], unpacked(weights, self.parameters))

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state of its parameters."""
        with self._telling(Word.STATE):
            [size] = self.link.receive_numbers(1)
            state: dict[str, Any] = from_bytes(self.link.receive_bytes(size))
        return state

    def _tell(self, word: Word, *numbers: int) -> None:
        with self._telling(word, *numbers):
            pass

    @contextmanager
    def _telling(self, word: Word, *numbers: int) -> Iterator[None]:
        try:
            self.link.send_numbers(word, len(numbers))
            if numbers:
                self.link.send_numbers(*numbers)
            yield
        except RuntimeError as error:  # as gloo says that the other end has gone
            raise ConnectionError(f"{self.name} was lost ({str(error).splitlines()[0]}).") from error


class Shard:
    """A shard's process: `run` obeys until the server has gone.

    connect: called in a thread of each worker's process that joins
    """

    def __init__(self, share: Share, server: Link, *, connect: Connect) -> None:
        self.share = share
        self.server = server
        self.connect = connect
        self._arrived: dict[tuple[int, int], list[Tensor | None]] = {}  # by worker and batch
        self._workers: dict[int, _WorkersEnd] = {}
        self._lock = threading.Lock()
        for parameter in share.others:  # their weights are kept elsewhere
            parameter.data = parameter.data.new_empty(0)

    def run(self) -> None:
        """Raises RuntimeError when the server has gone."""
        while True:
            word, count = self.server.receive_numbers(2)
            numbers = self.server.receive_numbers(count) if count else []
            self._obey(Word(word), numbers)

    def _obey(self, word: Word, numbers: list[int]) -> None:
        share, server = self.share, self.server
        if word is Word.LOAD:
            weights = server.receive_bytes(packed_size(share.parameters))
            copy_into([each.detach() for each in share.parameters], unpacked(weights, share.parameters))
            share.optimizer.load_state_dict(from_bytes(server.receive_bytes(numbers[0])))
        elif word is Word.JOIN:
            worker, incarnation = numbers
            with self._lock:
                self._workers[worker] = _WorkersEnd(self, worker, incarnation)
        elif word is Word.GIVE:
            self._workers[numbers[0]].give()
        elif word is Word.USE:
            share.use([self._take(worker, batch) for worker, batch in zip(numbers[::2], numbers[1::2], strict=True)])
        elif word is Word.UPDATE:
            fraction, norm = server.receive(torch.empty(2, dtype=torch.float64)).tolist()
            share.optimizer.update(numbers[0], fraction=fraction, norm=None if math.isnan(norm) else norm)
        elif word is Word.FORGET:
            self._take(numbers[0], numbers[1])
        elif word is Word.NORMS:
            server.send(share.optimizer.norms())
        elif word is Word.WEIGHTS:
            server.send(packed(share.parameters))
        else:
            content = to_bytes(share.state_dict())
            server.send_numbers(len(content))
            server.send(content)

    def _take(self, worker: int, batch: int) -> list[Tensor | None]:
        """The gradient of a batch, which is then forgotten, with older ones of a process that was lost."""
        with self._lock:
            found = self._arrived[worker, batch]
            self._arrived = {key: kept for key, kept in self._arrived.items() if key[0] != worker or key[1] > batch}
        return found

    def keep(self, end: _WorkersEnd, batch: int, gradients: list[Tensor | None]) -> bool:
        """Keep a gradient until the server says what becomes of it; False if another process has taken the worker's place."""
        with self._lock:
            if self._workers.get(end.worker) is not end:
                return False
            self._arrived[end.worker, batch] = gradients
            return True


class _WorkersEnd:
    """A shard's end of one worker's process, with a thread of its own."""

    def __init__(self, shard: Shard, worker: int, incarnation: int) -> None:
        self.shard = shard
        self.worker = worker
        self._weights: Tensor | None = None
        self._due: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(incarnation,), name=f"worker-{worker}", daemon=True).start()

    def give(self) -> None:
        """Have the weights sent as they are now; what was given before has arrived."""
        self._weights = packed(self.shard.share.parameters, into=self._weights)
        self._due.put(self._weights)

    def _serve(self, incarnation: int) -> None:
        try:
            link = self.shard.connect(self.worker, incarnation)
            while True:
                link.send(self._due.get())
                [batch] = link.receive_numbers(1)
                if not self.shard.keep(self, batch, receive_gradients(link, self.shard.share.parameters)):
                    return
                link.send_numbers(batch)
        except RuntimeError:
            return  # the server hears of it, too
