"""What a parameter server and one worker tell each other: tensors as bytes between the two ranks of a gloo group.

Bits travel unchanged: sparse gradients as their rows, each once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SPREAD = 1 << 16  # elements from which a tensor is divided among the connections
ALIGNED = 8  # bytes at multiples of which a tensor begins
SERVER, WORKER = 0, 1
ABSENT, DENSE = -2, -1  # kinds of a gradient; a sparse one is known by the number of its rows


class Link:
    """One end of the connection between a server and a worker, through a file that both see.

    rank: SERVER or WORKER; seconds: after which silence counts as loss
    connections: gloo groups, each with a thread of its own, among which what is large is divided
    Every method raises RuntimeError as soon as the other end has gone.
    """

    def __init__(self, path: Path, *, rank: int, seconds: float, connections: int = 1) -> None:
        self._other = 1 - rank
        store = dist.FileStore(str(path), 2)  # type: ignore[attr-defined]
        limit = timedelta(seconds=seconds)
        stores = [dist.PrefixStore(str(number), store) for number in range(connections)]  # type: ignore[attr-defined]
        self._groups: list[Any] = [dist.ProcessGroupGloo(own, rank, 2, limit) for own in stores]

    def send(self, tensor: Tensor) -> None:
        """Send a contiguous tensor."""
        works = [group.send([piece], self._other, 0) for group, piece in self._pieces(tensor)]
        for work in works:
            work.wait()

    def receive(self, tensor: Tensor) -> Tensor:
        """Fill a contiguous tensor, of the shape that was sent."""
        works = [group.recv([piece], self._other, 0) for group, piece in self._pieces(tensor)]
        for work in works:
            work.wait()
        return tensor

    def _pieces(self, tensor: Tensor) -> list[tuple[Any, Tensor]]:
        if not tensor.numel():
            return []
        count = len(self._groups) if tensor.numel() >= SPREAD else 1
        return list(zip(self._groups, tensor.tensor_split(count), strict=False))

    def send_numbers(self, *numbers: int) -> None:
        self.send(torch.tensor(numbers, dtype=torch.int64))

    def receive_numbers(self, count: int) -> list[int]:
        numbers: list[int] = self.receive(torch.empty(count, dtype=torch.int64)).tolist()
        return numbers

    def receive_bytes(self, count: int) -> Tensor:
        return self.receive(torch.empty(count, dtype=torch.uint8))


def packed(tensors: Sequence[Tensor], *, into: Tensor | None = None) -> Tensor:
    """Tensors as bytes, in a copy: uint8 [n].

    into: what an earlier call gave for tensors alike; fresh memory takes eight times as long
    """
    whole = torch.zeros(packed_size(tensors), dtype=torch.uint8) if into is None else into
    for target, source in zip(unpacked(whole, tensors), tensors, strict=True):
        target.copy_(source.detach())
    return whole


def packed_size(like: Sequence[Tensor]) -> int:
    return sum(_size(tensor) for tensor in like)


def unpacked(whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous views into `whole`, with the shapes and types of `like`."""
    found, at = [], 0
    for tensor in like:
        piece = whole[at : at + tensor.numel() * tensor.element_size()]
        found.append(piece.view(tensor.dtype).view(tensor.shape))
        at += _size(tensor)
    return found


def _size(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED


def send_gradients(link: Link, gradients: Sequence[Tensor | None]) -> None:
    """Send gradients, None for a parameter without one."""
    kinds, pieces = [], []
    for gradient in gradients:
        if gradient is None:
            kinds.append(ABSENT)
        elif gradient.is_sparse:
            rows = gradient.coalesce()  # as every sum and every update begins
            kinds.append(rows._nnz())
            pieces += [rows.indices(), rows.values()]
        else:
            kinds.append(DENSE)
            pieces.append(gradient)
    link.send_numbers(*kinds)
    link.send(packed(pieces))


def receive_gradients(link: Link, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of these parameters that `send_gradients` sent, in the host's memory."""
    like: list[Tensor] = []
    kinds = link.receive_numbers(len(parameters))
    for kind, parameter in zip(kinds, parameters, strict=True):
        if kind == DENSE:
            like.append(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
        elif kind != ABSENT:
            like.append(torch.empty((1, kind), dtype=torch.int64, device="meta"))
            like.append(torch.empty((kind, *parameter.shape[1:]), dtype=parameter.dtype, device="meta"))
    pieces = iter(unpacked(link.receive_bytes(packed_size(like)), like))
    found: list[Tensor | None] = []
    for kind, parameter in zip(kinds, parameters, strict=True):
        if kind == ABSENT:
            found.append(None)
        elif kind == DENSE:
            found.append(next(pieces))
        else:
            found.append(torch.sparse_coo_tensor(next(pieces), next(pieces), parameter.shape, is_coalesced=True))
    return found


def to_bytes(state: Any) -> Tensor:
    """Nested tuples, lists and dicts of tensors and numbers as uint8 [n]; None as nothing."""
    if state is None:
        return torch.empty(0, dtype=torch.uint8)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def from_bytes(content: Tensor) -> Any:
    """What `to_bytes` was given."""
    if not len(content):
        return None
    return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
