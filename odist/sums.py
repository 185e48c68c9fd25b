"""Sums over the virtual workers of a group, in one fixed pairwise tree.

Their bits do not depend on how many processes carry the workers. Every process sums one share of all tensors, so that what it
sends and holds does not grow with the number of processes: a reduce-scatter and an all-gather whose order of additions is
known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from odist.mesh import Mesh


class GroupSum:
    """Sum lists of tensors over all virtual workers of a group, whichever of its processes carry them.

    like: tensors of the shapes and types that the lists have. Those that come sparse in the first sum, in any process, may
    come sparse later, by rows along their first dimension; others are made dense.
    """

    def __init__(self, mesh: Mesh, like: Sequence[Tensor]) -> None:
        self._mesh = mesh
        self._like = list(like)
        self._tree = TreeSum()
        self._shares: list[_DenseShares | _SparseShares] | None = None

    def add(self, tensors: list[Tensor | None]) -> None:
        """Add the next of this process's workers; None stands for zero. The tensors are overwritten."""
        self._tree.add(tensors)

    @torch.no_grad()
    def total(self) -> list[Tensor | None]:
        """The sum over all workers of the group, in every process; all call it together."""
        own = self._tree.total()
        if self._mesh.replica.size == 1:
            return own
        if self._shares is None:
            self._shares = self._share_out(own)
        total: list[Tensor | None] = [None] * len(own)
        for share in self._shares:
            for place, tensor in zip(share.places, share.total([own[place] for place in share.places]), strict=True):
                total[place] = tensor
        return total

    def _share_out(self, own: list[Tensor | None]) -> list[_DenseShares | _SparseShares]:
        """Sort the tensors by kind and type, as all processes do alike."""
        said = self._mesh.gather(torch.tensor([tensor is not None and tensor.is_sparse for tensor in own]))
        sparse = torch.stack(said).any(dim=0).tolist()
        kinds: dict[tuple[bool, torch.dtype], list[int]] = {}
        for place, tensor in enumerate(self._like):
            kinds.setdefault((sparse[place], tensor.dtype), []).append(place)
        return [
            (_SparseShares if rows else _DenseShares)(self._mesh, self._like, places)
            for (rows, _), places in kinds.items()
        ]


@dataclass(frozen=True)
class _Piece:
    """Elements `start` to `end` of a flat tensor; they lie in slice `row`, from `at`."""

    number: int
    row: int
    at: int
    start: int
    end: int

    def within(self, row: Tensor) -> Tensor:
        return row[self.at : self.at + self.end - self.start]


class _DenseShares:
    """Dense tensors of one type, laid one behind the other and cut into one slice for each process.

    Behind its slice every process is told which of the tensors are there at all. The buffers are made once.
    """

    def __init__(self, mesh: Mesh, like: Sequence[Tensor], places: list[int]) -> None:
        self.places = places
        self._mesh = mesh
        self._like = [like[place] for place in places]
        self._length = -(-sum(tensor.numel() for tensor in self._like) // mesh.replica.size)
        self._pieces = _cut(self._like, length=self._length)
        shape = (mesh.replica.size, self._length + len(places))
        self._sent, self._received = (self._like[0].new_zeros(shape) for _ in range(2))

    def total(self, own: list[Tensor | None]) -> list[Tensor | None]:
        """The sums; tensors of `own` are overwritten."""
        own = [tensor.to_dense() if tensor is not None and tensor.is_sparse else tensor for tensor in own]
        for tensor, pieces in zip(own, self._pieces, strict=True):
            flat = None if tensor is None else tensor.flatten()
            for piece in pieces:
                target = piece.within(self._sent[piece.row])
                target.zero_() if flat is None else target.copy_(flat[piece.start : piece.end])
        self._sent[:, self._length :] = self._sent.new_tensor([float(tensor is not None) for tensor in own])
        dist.all_to_all_single(self._received, self._sent, group=self._mesh.process_group)
        known = self._received[:, self._length :] > 0
        mine = self._sum_slice(known)
        gathered = self._sent.view(-1)[: self._mesh.replica.size * self._length]
        _all_gather(gathered, mine, self._mesh)
        return self._cut_out(gathered.view(-1, max(1, self._length)), own, there=known.any(dim=0).tolist())

    def _sum_slice(self, known: Tensor) -> Tensor:
        """The sum of this process's slice over all processes. known: which process has which of the tensors"""
        rows = [row[: self._length] for row in self._received]
        if bool(known.all()):
            _join([[row] for row in rows])  # into the first
            return rows[0]
        has = known.tolist()
        mine = [piece for pieces in self._pieces for piece in pieces if piece.row == self._mesh.replica.index]
        parts = [
            [piece.within(row) if has[process][piece.number] else None for piece in mine]
            for process, row in enumerate(rows)
        ]
        for piece, result in zip(mine, _join(parts), strict=True):
            target = piece.within(rows[0])
            target.zero_() if result is None else target.copy_(result)
        return rows[0]

    def _cut_out(self, slices: Tensor, own: list[Tensor | None], *, there: list[bool]) -> list[Tensor | None]:
        total: list[Tensor | None] = []
        for tensor, like, pieces, used in zip(own, self._like, self._pieces, there, strict=True):
            if not used:
                total.append(None)
                continue
            result = torch.empty_like(like) if tensor is None else tensor
            parts = [piece.within(slices[piece.row]) for piece in pieces]
            if parts:
                result.copy_((parts[0] if len(parts) == 1 else torch.cat(parts)).view(result.shape))
            total.append(result)
        return total


def _cut(like: Sequence[Tensor], *, length: int) -> list[list[_Piece]]:
    """Where the elements of each tensor lie in slices of `length` elements."""
    found: list[list[_Piece]] = []
    offset = 0
    for number, tensor in enumerate(like):
        pieces, start = [], 0
        while start < tensor.numel():
            row, at = divmod(offset + start, length)
            end = min(tensor.numel(), start + length - at)
            pieces.append(_Piece(number, row, at, start, end))
            start = end
        found.append(pieces)
        offset += tensor.numel()
    return found


class _SparseShares:
    """Sparse tensors of one type, by rows: row r is summed by process r modulo the number of processes."""

    def __init__(self, mesh: Mesh, like: Sequence[Tensor], places: list[int]) -> None:
        self.places = places
        self._mesh = mesh
        self._like = [like[place] for place in places]
        self._widths = [like[place][:1].numel() for place in places]  # numbers of a row

    def total(self, own: list[Tensor | None]) -> list[Tensor | None]:
        """The sums, each sorted by rows without a row twice."""
        me = self._mesh.replica.index
        whole = [None if tensor is None else tensor.coalesce() for tensor in own]
        rows, values, counts = self._for_owners(whole)
        there = torch.tensor([tensor is not None for tensor in own])
        said = torch.stack(self._mesh.gather(torch.cat([there.view(-1, 1), counts], dim=1)))  # by process, tensor
        known, counts_of = said[:, :, 0].bool(), said[:, :, 1:]
        theirs = counts_of[:, :, me]  # by process, tensor
        rows = self._swap(rows, sent=counts.sum(dim=0), received=theirs.sum(dim=1))
        widths = torch.tensor(self._widths)
        values = self._swap(values, sent=(counts * widths[:, None]).sum(dim=0), received=(theirs * widths).sum(dim=1))
        parts = self._cut_out(rows, values, counts=theirs, known=known)
        mine = [self._nothing(number) if part is None else part for number, part in enumerate(_join(parts))]
        lengths = torch.stack(self._mesh.gather(torch.tensor([part._nnz() for part in mine])))  # by process, tensor
        rows = self._gathered([part.indices()[0] for part in mine], lengths.sum(dim=1))
        values = self._gathered([part.values().flatten() for part in mine], (lengths * widths).sum(dim=1))
        shares = self._cut_out(rows, values, counts=lengths, known=torch.ones_like(known))
        used = known.any(dim=0).tolist()
        return [
            self._merged([share[number] for share in shares]) if used[number] else None for number in range(len(own))
        ]

    def _nothing(self, number: int) -> Tensor:
        like = self._like[number]
        empty = torch.zeros((1, 0), dtype=torch.int64, device=like.device)
        return torch.sparse_coo_tensor(empty, like.new_zeros((0, *like.shape[1:])), like.shape, is_coalesced=True)

    def _for_owners(self, whole: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers and flat values of all tensors, owner by owner, and how many rows of each tensor every owner gets."""
        size = self._mesh.replica.size
        rows: list[list[Tensor]] = [[] for _ in range(size)]
        values: list[list[Tensor]] = [[] for _ in range(size)]
        counts = []
        for number, tensor in enumerate(whole):
            sparse = self._nothing(number) if tensor is None else tensor
            order = torch.argsort(sparse.indices()[0] % size, stable=True)
            lengths = torch.bincount(sparse.indices()[0] % size, minlength=size).cpu()
            split = lengths.tolist()
            for owner, (own_rows, own_values) in enumerate(
                zip(sparse.indices()[0][order].split(split), sparse.values()[order].split(split), strict=True)
            ):
                rows[owner].append(own_rows)
                values[owner].append(own_values.flatten())
            counts.append(lengths)
        joined = (torch.cat([part for of_owner in parts for part in of_owner]) for parts in (rows, values))
        return (*joined, torch.stack(counts))  # type: ignore[return-value]

    def _swap(self, content: Tensor, *, sent: Tensor, received: Tensor) -> Tensor:
        """Send each process its share; sent, received: numbers for and from each process"""
        target = content.new_empty(int(received.sum()))
        group = self._mesh.process_group
        dist.all_to_all_single(target, content, received.tolist(), sent.tolist(), group=group)
        return target

    def _gathered(self, parts: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """The joined parts of all processes, one behind the other. lengths: of each process's"""
        own, longest = torch.cat(list(parts)), int(lengths.max())
        padded = own.new_zeros(longest)
        padded[: len(own)] = own
        target = own.new_empty(longest * len(lengths))
        _all_gather(target, padded, self._mesh)
        pieces = zip(target.view(len(lengths), longest), lengths.tolist(), strict=True)
        return torch.cat([piece[:length] for piece, length in pieces])

    def _cut_out(self, rows: Tensor, values: Tensor, *, counts: Tensor, known: Tensor) -> list[list[Tensor | None]]:
        """Every process's tensors from what it has sent. counts: rows by process and tensor; known: whether there at all"""
        found: list[list[Tensor | None]] = []
        start, at = 0, 0
        for of_process, has in zip(counts.tolist(), known.tolist(), strict=True):
            tensors: list[Tensor | None] = []
            for like, width, count, there in zip(self._like, self._widths, of_process, has, strict=True):
                own_rows, own_values = rows[start : start + count], values[at : at + count * width]
                start, at = start + count, at + count * width
                shaped = own_values.view(count, *like.shape[1:])
                made = torch.sparse_coo_tensor(own_rows[None], shaped, like.shape, is_coalesced=True)
                tensors.append(made if there else None)
            found.append(tensors)
        return found

    def _merged(self, shares: Sequence[Tensor | None]) -> Tensor:
        """One tensor, sorted by rows, of the owners' shares of it."""
        parts = [share for share in shares if share is not None]
        rows = torch.cat([part.indices()[0] for part in parts])
        order = torch.argsort(rows)
        values = torch.cat([part.values() for part in parts])[order]
        return torch.sparse_coo_tensor(rows[order][None], values, parts[0].shape, is_coalesced=True)


def _all_gather(target: Tensor, own: Tensor, mesh: Mesh) -> None:
    """Lay the tensors of all processes one behind the other into `target`."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    gather(target, own, group=mesh.process_group)


def _join(parts: Sequence[list[Tensor | None]]) -> list[Tensor | None]:
    """The sum of the processes' lists, in the order of the tree."""
    tree = TreeSum()
    for part in parts:
        tree.add(part)
    return tree.total()


class TreeSum:
    """Sum lists of tensors pairwise, in the order they come: ((0+1)+(2+3))+((4+5)+6).

    Holds at most log2(workers) + 1 lists. An aligned block of 2^k entries is summed to the same bits
    by any process, so 1, 2 and 4 processes agree. Overwrites the tensors that it is given.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, list[Tensor | None]]] = []

    def add(self, tensors: list[Tensor | None]) -> None:
        """Add the next worker's list; None stands for zero."""
        level = 0
        while self._stack and self._stack[-1][0] == level:
            tensors = _pairwise(self._stack.pop()[1], tensors)
            level += 1
        self._stack.append((level, tensors))

    def total(self) -> list[Tensor | None]:
        """The sum over all workers; the tree is empty afterwards."""
        if not self._stack:
            raise ValueError("nothing was added to the sum")
        total = self._stack.pop()[1]
        while self._stack:
            total = _pairwise(self._stack.pop()[1], total)
        return total


def _pairwise(left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
    return [_add(a, b) for a, b in zip(left, right, strict=True)]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    if a.is_sparse:
        # Each side is coalesced first, so the order of additions inside a row is the tree's.
        return (a.coalesce() + b.coalesce()).coalesce()
    with torch.no_grad():
        return a.add_(b)
