"""The label loss, the distillation loss and their sum, for binary and for many-class predictions.

Distillation compares probabilities (cross-entropy, the divergence, which has the same gradient, or the divergence the other way
round, which asks a student to leave out what its teacher leaves out) or logits z with the
teachers' mean logits t: `logit_regression` is |z - t|^2 / 2, summed over the C classes (Ba and Caruana 2014, "Do deep nets
really need to be deep?", equation 1); `squared_logits` is |z - t|^2 / C, the mean squared error of other software, 2 / C of that:
its gradient is twice that of cross-entropies at a high temperature T, times T^2 (Hinton et al. 2015, equation 4). A weight
that suits one is far off for the other where classes are many. A binary prediction is one logit: C = 1.
At a `temperature` T other than 1 probabilities are those of logits / T, teacher's and student's, and the loss counts T^2 times
(Hinton et al. 2015, section 2).

This is the only place that averages teachers and compares them with a student. Losses are *sums* over
examples, not means: the caller divides by the one global count, so ragged batches and any number of
workers give the same number (as torchtitan and algoperf do).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odist.errors import UserError

if TYPE_CHECKING:
    from odist.config.schema import AlgorithmConfig


@dataclass(frozen=True)
class LossOptions:
    """How the two parts are weighed and compared; fields as below `algorithm` in a configuration."""

    label_weight: float = 1.0
    distill_weight: float = 1.0
    distill_loss: str = "cross_entropy"
    average: str = "probabilities"
    temperature: float = 1.0

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> LossOptions:
        """Those of a run's algorithm."""
        return cls(**{field.name: getattr(algorithm, field.name) for field in fields(cls)})

    def now(self, soft: Soft) -> LossOptions:
        """With the weight that the teacher has at this step."""
        return self if soft.weight == 1 else replace(self, distill_weight=self.distill_weight * soft.weight)


@dataclass(frozen=True)
class Soft:
    """Soft targets of one batch, one entry per teacher.

    values: each [batch] (binary) or [batch, ..., classes]; broadcastable to the student's logits
    kind: "logits" or "probabilities"
    weight: share of the distillation weight that counts now, below 1 while it rises
    """

    values: tuple[Tensor, ...]
    kind: str = "logits"
    weight: float = 1.0


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
    Raises UserError for other targets on the CPU; on an accelerator the check would have to wait for the device.
    Source: Anil et al. 2018, Algorithm 1 and section 2 (cross-entropy with the teachers' mean
    prediction as soft target, weight 1).
    """
    check_range(targets, highest=1)
    label = (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weights).sum()
    if soft is None:
        return Sums(label, None, label)
    options = options.now(soft)
    return _combine(label, _binary_distillation(logits, weights, soft, options), options)


def _binary_distillation(logits: Tensor, weights: Tensor, soft: Soft, options: LossOptions) -> Tensor:
    if options.distill_loss in LOGIT_LOSSES:
        each = (logits - _mean_logits(soft, binary=True)) ** 2 * logit_scale(options, classes=1)
    else:
        target = _mean_probabilities(soft, options, binary=True).to(logits.dtype).expand_as(logits)
        each = F.binary_cross_entropy_with_logits(logits / options.temperature, target, reduction="none")
        if options.distill_loss == "kl":
            each = each + torch.special.xlogy(target, target) + torch.special.xlog1py(1 - target, -target)
        elif options.distill_loss == "reverse_kl":
            each = _reverse_binary(logits / options.temperature, target)
        each = each * options.temperature**2
    return (each * weights).sum()


def multiclass(
    logits: Tensor, targets: Tensor, *, weights: Tensor, options: LossOptions, soft: Soft | None = None
) -> Sums:
    """Sum the softmax losses of one batch; hard and soft part share one log-softmax and one gradient.

    logits: [batch, ..., classes]; targets: int64 [batch, ...], each in [0, classes); weights: [batch, ...]
    No target means "ignore": an example that should not count has weight 0. UserError and source: as `binary`.
    Only `total` can be differentiated, once.
    """
    check_range(targets, highest=logits.shape[-1] - 1)
    flat = (logits.flatten(0, -2), targets.flatten(), weights.flatten().to(_exact(logits.dtype)))
    if soft is None:
        total, label, _ = _SoftmaxLosses.apply(*flat, None, LossOptions())
        return Sums(label, None, total)
    options = options.now(soft)
    if _apart(options):
        total, label, _ = _SoftmaxLosses.apply(*flat, None, options)
        distillation = _multiclass_distillation(logits, flat[2], soft, options)
        return Sums(label, distillation, total + options.distill_weight * distillation)
    total, label, distillation = _SoftmaxLosses.apply(*flat, soft, options)
    return Sums(label, distillation, total)


def _apart(options: LossOptions) -> bool:
    """Whether the distillation loss has no part in common with the label's."""
    return options.distill_loss in (*LOGIT_LOSSES, "reverse_kl") or options.temperature != 1


def _multiclass_distillation(logits: Tensor, weights: Tensor, soft: Soft, options: LossOptions) -> Tensor:
    """Of the losses that have no part in common with the label's. weights: [rows]"""
    if options.distill_loss in LOGIT_LOSSES:
        squares = ((logits - _mean_logits(soft, binary=False)) ** 2).mean(dim=-1)
        return (squares.flatten() * weights).sum() * logit_scale(options, classes=logits.shape[-1])
    target = _mean_probabilities(_rows(soft, slice(None)), options, binary=False).to(logits.dtype)
    values = F.log_softmax(logits.flatten(0, -2) / options.temperature, dim=-1)
    return (_cross_entropy(values, target, options.distill_loss) * weights).sum() * options.temperature**2


def regression(
    outputs: Tensor, targets: Tensor, *, weights: Tensor, options: LossOptions, soft: Soft | None = None
) -> Sums:
    """Sum the squared errors of one batch, and the squared distances from the teachers' mean output.

    outputs, targets, weights: [batch, ...]; of `options` only the weights count
    """
    label = ((outputs - targets) ** 2 * weights).sum()
    if soft is None:
        return Sums(label, None, label)
    options = options.now(soft)
    return _combine(label, _regression_distillation(outputs, weights, soft), options)


def _regression_distillation(outputs: Tensor, weights: Tensor, soft: Soft) -> Tensor:
    return ((outputs - _mean_logits(soft, binary=True)) ** 2 * weights).sum()


PREDICTIONS = {"classes": multiclass, "binary": binary, "values": regression}  # what is predicted -> its losses


def distillation(outputs: Tensor, *, soft: Soft, weights: Tensor, options: LossOptions, predicts: str) -> Tensor:
    """Sum the distillation losses of one batch alone, times their weight: to be added to a label loss of one's own.

    outputs, weights: as of the function that `PREDICTIONS` has for `predicts`; the result can be differentiated once
    """
    options = options.now(soft)
    if predicts == "binary":
        return options.distill_weight * _binary_distillation(outputs, weights, soft, options)
    if predicts == "values":
        return options.distill_weight * _regression_distillation(outputs, weights, soft)
    rows = weights.flatten().to(_exact(outputs.dtype))
    if _apart(options):
        return options.distill_weight * _multiclass_distillation(outputs, rows, soft, options)
    no_labels = torch.zeros(len(rows), dtype=torch.int64, device=outputs.device)
    total: Tensor = _SoftmaxLosses.apply(
        outputs.flatten(0, -2), no_labels, rows, soft, replace(options, label_weight=0.0)
    )[0]
    return total


LOGIT_LOSSES = ("squared_logits", "logit_regression")


def logit_scale(options: LossOptions, *, classes: int) -> float:
    """What the mean squared difference of `classes` logits is multiplied by; see the top of this module."""
    return classes / 2 if options.distill_loss == "logit_regression" else 1.0


CHUNK = 1 << 19  # logits that stay in a processor's cache from one pass over them to the next
CHUNK_OF_ACCELERATOR = 1 << 26  # logits whose temporaries take a quarter of a gigabyte each
HALVES = (torch.bfloat16, torch.float16)


class _SoftmaxLosses(torch.autograd.Function):
    """Weighted sums of -log p(label) and of the cross-entropy with a soft target, from one log-softmax.

    The gradient is written in the forward pass, a few rows at a time, so that of all the passes over the logits
    only one reads them from memory and one writes the gradient; autograd by parts would make ten.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor, soft: Soft | None, options: LossOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total, label and distillation sum; logits: [n, classes]; labels: int64 [n]; weights: [n]."""
        count, classes = logits.shape
        size = max(1, (CHUNK if logits.device.type == "cpu" else CHUNK_OF_ACCELERATOR) // classes)
        exact = _exact(logits.dtype)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        hard, distilled = torch.empty_like(weights), torch.zeros_like(weights)
        for start in range(0, count, size):
            rows = slice(start, start + size)
            own, index = weights[rows, None], labels[rows, None]
            values = F.log_softmax(logits[rows].to(exact), dim=-1)
            hard[rows] = -values.gather(1, index)[:, 0]
            target = None
            if soft is not None:
                target = _mean_probabilities(_rows(soft, rows), options, binary=False).to(exact)
                distilled[rows] = _cross_entropy(values, target, options.distill_loss)
            if gradient is not None:
                part = torch.exp(values, out=gradient[rows] if gradient.dtype == exact else None)
                if target is None:
                    part.mul_(options.label_weight * own)
                else:
                    part.mul_((options.label_weight + options.distill_weight) * own)  # a soft target sums to one
                    part.addcmul_(target, own, value=-options.distill_weight)
                part.scatter_add_(1, index, -options.label_weight * own)
                if gradient.dtype != exact:
                    gradient[rows] = part
        label, distillation = (hard * weights).sum(), (distilled * weights).sum()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(label, distillation)
        return options.label_weight * label + options.distill_weight * distillation, label, distillation

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(scale), None, None, None, None


def check_range(targets: Tensor, *, highest: float) -> None:
    """Refuse targets that have no loss, by a UserError: with -1 the binary cross-entropy would fall without end.

    targets: of any shape, in [0, highest]; on an accelerator they are taken as they are
    """
    if targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (float(end) for end in torch.aminmax(targets))
    if not (low >= 0 and high <= highest):  # so that NaN is refused too
        expected = "none below 0" if highest == math.inf else f"all from 0 to {highest:g}"
        raise UserError(
            f"targets from {low:g} to {high:g}: expected {expected}. What has no label cannot be learnt from."
        )


def _rows(soft: Soft, rows: slice) -> Soft:
    """The soft targets of some rows; those that are the same for all stay one row."""
    values = (value[None] if value.ndim == 1 else value.flatten(0, -2)[rows] for value in soft.values)
    return Soft(tuple(values), soft.kind)


def _cross_entropy(log_probabilities: Tensor, target: Tensor, kind: str) -> Tensor:
    """Cross-entropy of each row with its target; with kind "kl" the divergence from it, "reverse_kl" the other way round."""
    if kind == "reverse_kl":
        return (log_probabilities.exp() * (log_probabilities - _log(target))).sum(dim=-1)
    if len(target) == 1:
        each = -log_probabilities.mv(target[0])
    else:  # a product per row, without a temporary
        each = -torch.bmm(log_probabilities[:, None], target[:, :, None]).flatten()
    return each + torch.special.xlogy(target, target).sum(dim=-1) if kind == "kl" else each


def _log(probabilities: Tensor) -> Tensor:
    """Logarithms of a teacher's probabilities, none below -100, as in torch's binary cross-entropy: 0 is no target."""
    return probabilities.log().clamp(min=-100)


def _reverse_binary(logits: Tensor, target: Tensor) -> Tensor:
    """Divergence of the student's probability from the teacher's, from the student's side: [batch]."""
    own, other = F.logsigmoid(logits), F.logsigmoid(-logits)
    return own.exp() * (own - _log(target)) + other.exp() * (other - _log(1 - target))


def _combine(label: Tensor, distillation: Tensor, options: LossOptions) -> Sums:
    total = options.label_weight * label + options.distill_weight * distillation
    return Sums(label, distillation, total)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The type in which losses of logits of type `dtype` are worked out."""
    return torch.float32 if dtype in HALVES else dtype


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values) if len(values) > 1 else total


def _mean_probabilities(soft: Soft, options: LossOptions, *, binary: bool) -> Tensor:
    def normalise(logits: Tensor) -> Tensor:
        logits = logits.to(_exact(logits.dtype))
        cooled = logits if options.temperature == 1 else logits / options.temperature
        return torch.sigmoid(cooled) if binary else torch.softmax(cooled, dim=-1)

    if soft.kind == "probabilities":
        return _mean([value.detach() for value in soft.values])
    values = [value.detach() for value in soft.values]
    if options.average == "logits":
        return normalise(_mean(values))
    return _mean([normalise(value) for value in values])


def _mean_logits(soft: Soft, *, binary: bool) -> Tensor:
    values = [value.detach().to(_exact(value.dtype)) for value in soft.values]
    if soft.kind == "probabilities":
        values = [torch.logit(value) if binary else value.log() for value in values]
    return _mean(values)
