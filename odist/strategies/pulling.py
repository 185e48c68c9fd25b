"""A worker's end of asynchronous SGD: pull weights from the server, push the gradient of one batch, again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies.base import Losses, copy_into, label_weights
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

    used: gradients that make an update; each is divided by their number
    """

    spreads_workers = False

    def __init__(self, mesh: Mesh, link: Link, *, used: int) -> None:
        self.mesh = mesh
        self.link = link
        self.used = used

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = list(model.parameters())
        self.buffers = list(model.buffers())

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        return [label_weights(batch) * self.used for batch in batches]

    def pull(self) -> Pulled:
        """Put the server's newest weights in place. Raises ServerGone."""
        with _hearing():
            return self._pull()

    def _pull(self) -> Pulled:
        batch, version, step, size = self.link.receive_numbers(4)
        tensors = [*self.parameters, *self.buffers]
        weights = self.link.receive_bytes(packed_size(tensors))
        copy_into([tensor.detach() for tensor in tensors], unpacked(weights, tensors))
        return Pulled(batch, version, step, from_bytes(self.link.receive_bytes(size)))

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
        self.link.send(losses.numbers())
        self.link.send_numbers(len(content))
        send_gradients(self.link, [parameter.grad for parameter in self.parameters])
        self.link.send(packed(self.buffers))
        self.link.send(content)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def _hearing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as gloo says that the other end has gone
        raise ServerGone(str(error)) from error
