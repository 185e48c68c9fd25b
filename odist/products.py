"""Products of networks in fewer bits: bfloat16 by autocast, matrices of 8-bit numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odist.tasks.base import Batch, Carry, Forward

LARGEST = 127  # of an 8-bit number, of either sign
aten = torch.ops.aten


def in_bf16_products(forward: Forward) -> Forward:
    """`forward` with its products in bfloat16 by autocast, its logits in float32."""

    def in_mixed_precision(model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        with torch.autocast(batch.targets.device.type, dtype=torch.bfloat16):
            logits, carry = forward(model, batch, carry)
        return logits.float(), carry

    return in_mixed_precision


def cast_matrices(model: nn.Module) -> None:
    """Cast matrices to bfloat16, which take half the memory and no cast at each step; vectors and buffers stay float32."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.bfloat16)


class Int8Matrix(Tensor):
    """A float32 matrix to everybody who looks, kept as 8-bit numbers with a scale for each row; products with it are of int8.

    The other factor is quantised at each product, each of its rows with a scale of its own, so that what is predicted for an
    example does not depend on what else is in its batch. Anything but a product sees the float32 matrix.

    numbers: int8 [rows, columns]; scales: float32 [rows]; flipped: whether it is the transpose of those
    """

    numbers: Tensor
    scales: Tensor
    flipped: bool

    @staticmethod
    def __new__(cls, numbers: Tensor, scales: Tensor, flipped: bool = False) -> Int8Matrix:
        shape = numbers.shape[::-1] if flipped else numbers.shape
        made: Int8Matrix = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=numbers.device)
        made.numbers, made.scales, made.flipped = numbers, scales, flipped
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, matrix: Tensor) -> Int8Matrix:
        """Quantise a matrix [rows, columns]."""
        return cls(*quantised(matrix.float()))

    def float_matrix(self) -> Tensor:
        """The numbers that it stands for."""
        whole = self.numbers * self.scales[:, None]
        return whole.t() if self.flipped else whole

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Int8Matrix({list(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = HANDLERS.get(operation)
        found = NotImplemented if handler is None else handler(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        plain, named = torch.utils._pytree.tree_map_only(Int8Matrix, Int8Matrix.float_matrix, (args, kwargs or {}))
        return operation(*plain, **named)


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit numbers [rows, columns] and scales [rows] of float32 rows; zero stays zero."""
    scales = rows.abs().amax(dim=1).clamp_min_(torch.finfo(torch.float32).tiny * LARGEST).div_(LARGEST)
    return rows.div(scales[:, None]).round_().to(torch.int8), scales


def product(left: Tensor, right: Int8Matrix, bias: Tensor | None = None) -> Tensor:
    """left [n, columns] times the transpose of the matrix [rows, columns], plus a bias [rows]: float32 [n, rows]."""
    rows, columns = right.numbers.shape
    values, scales = quantised(left.float())
    whole = right.numbers
    if left.is_cuda:  # its products take more than 16 rows, and sides that are multiples of 8
        values = nn.functional.pad(values, (0, -columns % 8, 0, max(0, 17 - len(values))))
        whole = nn.functional.pad(whole, (0, -columns % 8, 0, -rows % 8))
    made = torch._int_mm(values, whole.t())[: len(left), :rows].mul(scales[:, None])
    return made.mul_(right.scales) if bias is None else torch.addcmul(bias, made, right.scales)


def _transposed(matrix: Int8Matrix) -> Int8Matrix:
    return Int8Matrix(matrix.numbers, matrix.scales, not matrix.flipped)


def _mm(left: Any, right: Any, *, out: Tensor | None = None) -> Any:
    if isinstance(left, Int8Matrix) or not right.flipped:
        return NotImplemented
    made = product(left, right)
    return made if out is None else out.copy_(made)


def _addmm(bias: Any, left: Any, right: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    plain = isinstance(bias, Int8Matrix) or isinstance(left, Int8Matrix) or bias.ndim != 1
    if plain or not right.flipped or beta != 1 or alpha != 1:
        return NotImplemented
    return product(left, right, bias.float())


def _rows(matrix: Any, indices: Tensor, *_: Any) -> Any:
    if not isinstance(matrix, Int8Matrix) or matrix.flipped:
        return NotImplemented
    return matrix.numbers[indices] * matrix.scales[indices][..., None]


def _load(matrix: Any, weights: Tensor, *_: Any) -> Any:
    if not isinstance(matrix, Int8Matrix) or matrix.flipped:
        return NotImplemented
    values, scales = quantised(weights.to(matrix.device, torch.float32))
    matrix.numbers.copy_(values)
    matrix.scales.copy_(scales)
    return matrix


def _itself(matrix: Int8Matrix, *_: Any, **__: Any) -> Int8Matrix:
    """Also where autocast asks for another type: the product quantises whatever comes."""
    return Int8Matrix(matrix.numbers, matrix.scales, matrix.flipped)


HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.t.default: _transposed,
    aten.detach.default: _itself,
    aten.alias.default: _itself,
    aten._to_copy.default: _itself,
    aten.mm.default: _mm,
    aten.mm.out: _mm,
    aten.addmm.default: _addmm,
    aten.embedding.default: _rows,
    aten.copy_.default: _load,
}
