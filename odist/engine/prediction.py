"""What models predict for the rows of a split: batch by batch, or all at once as the mean of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from odist.tasks.base import Batch, Carry, Task


@torch.no_grad()
def predict_batches(
    task: Task, model: nn.Module, *, split: str, rows: int | None, batch_size: int, device: str
) -> Iterator[tuple[Tensor, Batch]]:
    """Predict the first `rows` rows of a split (None: all) in eval mode, batch by batch: (logits, batch)."""
    model.eval()
    order = task.evaluation_order(split, rows=rows, batch_size=batch_size)
    carry: Carry = None
    for step in range(len(order)):
        batch = task.batch(order.ids(step), split).to(device)
        logits, carry = task.forward(model, batch, carry)
        yield logits, batch


@dataclass(frozen=True)
class SplitPrediction:
    """Mean probabilities of some models over a split, as `Task.probabilities` has them, and what is known of the rows.

    probabilities: float64 [n] or [n, classes]; targets: [n]; bayes: [n] or None
    """

    probabilities: np.ndarray
    targets: np.ndarray
    bayes: np.ndarray | None


def predict_split(
    task: Task, models: Sequence[nn.Module], *, batch_size: int, device: str, split: str = "validation"
) -> SplitPrediction:
    """Predict a whole split with the mean probability of `models` (one, or the members of an ensemble)."""
    totals: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    bayes: list[np.ndarray] = []
    for number, model in enumerate(models):
        passes = predict_batches(task, model, split=split, rows=None, batch_size=batch_size, device=device)
        for index, (logits, batch) in enumerate(passes):
            # Rounded to float32 as in the prediction files, so that both ways of averaging agree.
            probabilities = task.probabilities(logits.float(), batch).cpu().numpy().astype(np.float64)
            if number == 0:
                totals.append(probabilities)
                targets.append(batch.targets.flatten().cpu().numpy())
                if batch.bayes is not None:
                    bayes.append(batch.bayes.flatten().cpu().numpy())
            else:
                totals[index] += probabilities
    mean = np.concatenate(totals) / len(models)
    return SplitPrediction(mean, np.concatenate(targets), np.concatenate(bayes) if bayes else None)
