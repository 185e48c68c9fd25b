"""What a task is: data, model, loss and metrics of one problem, and nothing about how it is trained.

A new task implements `Task` and adds its name to `odist.tasks.TASKS`. A task whose examples are numbered rows inherits
most of it from `odist.tasks.rows.RowTask`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from odist.data.order import EvaluationOrder, Order
from odist.losses import Soft, Sums

Carry = Any  # what a model keeps from one batch to the next; None for models without state
Forward = Callable[[nn.Module, "Batch", Carry], tuple[Tensor, Carry]]


@dataclass
class Batch:
    """Examples of one virtual worker.

    inputs: tensors, each [batch, ...]; targets: [batch, ...]; weights: [batch, ...] label weights
    bayes: [batch, ...] optimal probabilities where the generator knows them
    finish: makes the model's inputs of these, on the device, so that images travel there as bytes; None: they are those
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    weights: Tensor
    bayes: Tensor | None = None
    finish: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None = None

    def to(self, device: str) -> Batch:
        """The batch on `device` as the model takes it; the host does not wait for the copy of a staged one."""
        if self.finish is None and str(self.targets.device) == device:
            return self
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return moved if self.finish is None else replace(moved, inputs=self.finish(moved.inputs), finish=None)

    def staged(self, device: str) -> Batch:
        """The batch prepared for `to(device)` as far as a thread beside the training can do it: for a GPU, in pinned memory."""
        return self.to(device) if device == "cpu" else self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            inputs=tuple(change(tensor) for tensor in self.inputs),
            targets=change(self.targets),
            weights=change(self.weights),
            bayes=None if self.bayes is None else change(self.bayes),
        )


class Metrics(Protocol):
    """Sums over the examples of all batches."""

    def update(self, logits: Any, targets: Any, weights: Any, *, bayes: Any | None = None) -> None: ...

    def totals(self) -> dict[str, np.ndarray]:
        """The sums themselves, float64."""
        ...

    def add(self, totals: dict[str, np.ndarray]) -> None:
        """Take in the sums of other batches."""
        ...

    def result(self) -> dict[str, float]: ...


class Task(Protocol):
    """One problem; see `odist.tasks.criteo` for a complete one."""

    fingerprint: str  # names the data and everything that gives it meaning
    fitted_fingerprint: str  # names what gives ids and numbers their meaning; data that share it may be evaluated alike
    main_metric: str  # what reports and targets are about; lower is better

    def build_model(self) -> nn.Module:
        """A new model, initialised from torch's global generator (seeded by the caller)."""
        ...

    def num_rows(self, split: str) -> int:
        """Rows of "train" or "validation"."""
        ...

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> Order:
        """Which training rows a group reads at each step."""
        ...

    def distinct_rows(self, *, num_groups: int, examples: int) -> int:
        """Different training rows that `num_groups` groups read in `examples` examples each."""
        ...

    def evaluation_order(self, split: str, *, rows: int | None, batch_size: int) -> EvaluationOrder:
        """What an evaluation of a split reads, in batches of `batch_size`; of its first `rows` rows, None for all."""
        ...

    def batch(self, ids: np.ndarray, split: str) -> Batch:
        """The examples `ids` (int64 [batch, ...], as an order gave them) of a split; equal ids give equal batches."""
        ...

    def forward(self, model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        """Logits of a batch, and what the model keeps for the next one."""
        ...

    def loss(self, logits: Tensor, batch: Batch, soft: Soft | None = None) -> Sums:
        """Sums of the label loss and, with soft targets, of the distillation loss."""
        ...

    def metrics(self) -> Metrics:
        """An empty accumulator."""
        ...

    def probabilities(self, logits: Tensor, batch: Batch) -> Tensor:
        """What is stored of a prediction, one entry per target: [n] of the positive class (binary), [n, classes],
        or, where the classes are too many, [n] of the correct class."""
        ...

    def results(
        self, probabilities: np.ndarray, targets: np.ndarray, *, bayes: np.ndarray | None, split: str
    ) -> dict[str, Any]:
        """Metrics of a whole split's `probabilities`, in the order of `evaluation_order`, with their intervals."""
        ...

    def prior(self) -> Tensor:
        """Frequencies of the labels in the training part: [] (binary) or [classes]."""
        ...
