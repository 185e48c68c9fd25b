"""A worker's end of asynchronous SGD: pull weights from the server, push the gradient of one batch, again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies.base import Losses, copy_into, label_weights
from odist.strategies.share import divided
from odist.strategies.wire import Link, from_bytes, packed, packed_size, send_gradients, to_bytes, unpacked
from odist.tasks.base import Batch


class ServerGone(Exception):
    """Training is over, or the server's process has ended."""


@dataclass(frozen=True)
class Pulled:
    """What came with the weights.

    batch: number of the batch to compute; step: of the group; carry: what the model carries on from the batch before, as a worker
    that begins gets it; None: nothing, or what this process has
    """

    batch: int
    version: int
    step: int
    carry: Any


class Pulling:
    """The strategy of a process that computes the gradients of one worker.

    links: to the server and to each of its shards; used: gradients that make an update; each is divided by their number
    """

    spreads_workers = False

    def __init__(self, mesh: Mesh, links: Sequence[Link], *, used: int) -> None:
        self.mesh = mesh
        self.link, *self.shards = links
        self.used = used
        self._threads = ThreadPoolExecutor(max(1, len(self.shards)), "shard")
        self._batch = 0

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.share, *self.shares = divided(list(model.parameters()), 1 + len(self.shards))
        self.buffers = list(model.buffers())

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        return [label_weights(batch) * self.used for batch in batches]

    def pull(self) -> Pulled:
        """Put the server's newest weights in place. Raises ServerGone."""
        with _hearing():
            return self._pull()

    def _pull(self) -> Pulled:
        self._batch, version, step, size = self.link.receive_numbers(4)
        coming = [
            self._threads.submit(_receive, link, share) for link, share in zip(self.shards, self.shares, strict=True)
        ]
        _receive(self.link, [*self.share, *self.buffers])
        carry = from_bytes(self.link.receive_bytes(size))
        for each in coming:
            each.result()
        return Pulled(self._batch, version, step, carry)

    @contextmanager
    def worker(self, worker: int) -> Iterator[None]:
        self.optimizer.zero_grad()
        yield

    def step(self, step: int) -> None:
        pass

    def settle(self) -> None:
        pass

    def push(self, losses: Losses, *, carry: Any) -> None:
        """Send the gradient of the batch, its losses and what the model carries on to the next. Raises ServerGone."""
        with _hearing():
            self._push(losses, carry=carry)

    def _push(self, losses: Losses, *, carry: Any) -> None:
        content = to_bytes(carry)
        going = [
            self._threads.submit(self._push_share, link, share)
            for link, share in zip(self.shards, self.shares, strict=True)
        ]
        self.link.send(losses.numbers())
        self.link.send_numbers(len(content))
        send_gradients(self.link, [parameter.grad for parameter in self.share])
        self.link.send(packed(self.buffers))
        self.link.send(content)
        for each in going:
            each.result()
        if going:
            self.link.send_numbers(self._batch)

    def _push_share(self, link: Link, share: Sequence[nn.Parameter]) -> None:
        """Returns when the shard has it."""
        link.send_numbers(self._batch)
        send_gradients(link, [parameter.grad for parameter in share])
        link.receive_numbers(1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _receive(link: Link, tensors: Sequence[Tensor]) -> None:
    weights = link.receive_bytes(packed_size(tensors))
    copy_into([tensor.detach() for tensor in tensors], unpacked(weights, tensors))


@contextmanager
def _hearing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as gloo says that the other end has gone
        raise ServerGone(str(error)) from error
