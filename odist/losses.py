"""The label loss, the distillation loss and their sum, for binary and for many-class predictions.

The only place that averages teachers and compares them with a student. Losses are *sums* over
examples, not means: the caller divides by the one global count, so ragged batches and any number of
workers give the same number (as torchtitan and algoperf do).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossOptions:
    """How the two parts are weighed and compared; fields as in `AlgorithmConfig`."""

    label_weight: float = 1.0
    distill_weight: float = 1.0
    distill_loss: str = "cross_entropy"
    average: str = "probabilities"


@dataclass(frozen=True)
class Soft:
    """Soft targets of one batch, one entry per teacher.

    values: each [batch] (binary) or [batch, ..., classes]; broadcastable to the student's logits
    kind: "logits" or "probabilities"
    """

    values: tuple[Tensor, ...]
    kind: str = "logits"


@dataclass(frozen=True)
class Sums:
    """Numerators of one batch: scalars, both weighted by the label weights.

    label: sum of the label losses; distillation: sum of the distillation losses, None without teacher
    total: what is differentiated, `label_weight * label + distill_weight * distillation`
    """

    label: Tensor
    distillation: Tensor | None
    total: Tensor


def binary(logits: Tensor, targets: Tensor, *, weights: Tensor, options: LossOptions, soft: Soft | None = None) -> Sums:
    """Sum the logistic losses of one batch.

    logits, targets, weights: [batch]; targets in [0, 1]
    Source: Anil et al. 2018, Algorithm 1 and section 2 (cross-entropy with the teachers' mean
    prediction as soft target, weight 1).
    """
    label = (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weights).sum()
    if soft is None:
        return Sums(label, None, label)
    if options.distill_loss == "squared_logits":
        target = _mean_logits(soft, binary=True)
        each = (logits - target) ** 2
    else:
        target = _mean_probabilities(soft, options.average, binary=True).to(logits.dtype).expand_as(logits)
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if options.distill_loss == "kl":
            each = each + torch.special.xlogy(target, target) + torch.special.xlog1py(1 - target, -target)
    return _combine(label, (each * weights).sum(), options)


def multiclass(
    logits: Tensor, targets: Tensor, *, weights: Tensor, options: LossOptions, soft: Soft | None = None
) -> Sums:
    """Sum the softmax losses of one batch; hard and soft part share one log-softmax.

    logits: [batch, ..., classes]; targets: int64 [batch, ...]; weights: [batch, ...]
    Source: as `binary`.
    """
    log_probabilities = F.log_softmax(logits, dim=-1)
    label = (-log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1) * weights).sum()
    if soft is None:
        return Sums(label, None, label)
    if options.distill_loss == "squared_logits":
        each = ((logits - _mean_logits(soft, binary=False)) ** 2).mean(dim=-1)
    else:
        target = _mean_probabilities(soft, options.average, binary=False).to(logits.dtype)
        each = -(log_probabilities * target).sum(dim=-1)
        if options.distill_loss == "kl":
            each = each + torch.special.xlogy(target, target).sum(dim=-1)
    return _combine(label, (each * weights).sum(), options)


def _combine(label: Tensor, distillation: Tensor, options: LossOptions) -> Sums:
    total = options.label_weight * label + options.distill_weight * distillation
    return Sums(label, distillation, total)


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values) if len(values) > 1 else total


def _mean_probabilities(soft: Soft, average: str, *, binary: bool) -> Tensor:
    def normalise(logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if binary else torch.softmax(logits, dim=-1)

    if soft.kind == "probabilities":
        return _mean([value.detach() for value in soft.values])
    values = [value.detach() for value in soft.values]
    if average == "logits":
        return normalise(_mean(values))
    return _mean([normalise(value) for value in values])


def _mean_logits(soft: Soft, *, binary: bool) -> Tensor:
    values = [value.detach() for value in soft.values]
    if soft.kind == "probabilities":
        values = [torch.logit(value) if binary else value.log() for value in values]
    return _mean(values)
