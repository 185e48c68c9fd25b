"""Losses against torch's own, and the claims about soft targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from odist.losses import LossOptions, Soft, binary, multiclass

torch.manual_seed(0)
ROWS, CLASSES = 64, 7
LOGITS = torch.randn(ROWS, CLASSES)
TARGETS = torch.randint(CLASSES, (ROWS,))
WEIGHTS = torch.rand(ROWS)
CLICK_LOGITS = torch.randn(ROWS)
CLICKS = torch.randint(2, (ROWS,)).float()


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_a_constant_uniform_teacher_is_label_smoothing(smoothing):
    uniform = Soft((torch.full((CLASSES,), 1 / CLASSES),), kind="probabilities")
    options = LossOptions(label_weight=1 - smoothing, distill_weight=smoothing)
    sums = multiclass(LOGITS, TARGETS, weights=torch.ones(ROWS), options=options, soft=uniform)
    expected = F.cross_entropy(LOGITS, TARGETS, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(sums.total, expected)


def test_without_teacher_it_is_plain_cross_entropy_with_weight_one():
    options = LossOptions(label_weight=0.5, distill_weight=0.5)
    sums = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=options)
    torch.testing.assert_close(sums.total, (F.cross_entropy(LOGITS, TARGETS, reduction="none") * WEIGHTS).sum())
    assert sums.distillation is None
    clicks = binary(CLICK_LOGITS, CLICKS, weights=WEIGHTS, options=options)
    expected = F.binary_cross_entropy_with_logits(CLICK_LOGITS, CLICKS, weight=WEIGHTS, reduction="sum")
    torch.testing.assert_close(clicks.total, expected)


def test_two_teachers_are_one_with_their_mean_probability():
    first, second = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    mean = (first.softmax(-1) + second.softmax(-1)) / 2
    sums = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=LossOptions(), soft=Soft((first, second)))
    expected = (F.cross_entropy(LOGITS, mean, reduction="none") * WEIGHTS).sum()
    torch.testing.assert_close(sums.distillation, expected)
    torch.testing.assert_close(sums.total, sums.label + sums.distillation)
    a, b = torch.randn(ROWS), torch.randn(ROWS)
    clicks = binary(CLICK_LOGITS, CLICKS, weights=WEIGHTS, options=LossOptions(), soft=Soft((a, b)))
    soft = (a.sigmoid() + b.sigmoid()) / 2
    torch.testing.assert_close(
        clicks.distillation, F.binary_cross_entropy_with_logits(CLICK_LOGITS, soft, weight=WEIGHTS, reduction="sum")
    )


def test_the_mean_of_logits_is_another_teacher():
    soft = Soft((torch.randn(ROWS, CLASSES) * 3, torch.randn(ROWS, CLASSES) * 3))
    by_probability = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=LossOptions(), soft=soft)
    options = LossOptions(average="logits")
    by_logit = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=options, soft=soft)
    mean = ((soft.values[0] + soft.values[1]) / 2).softmax(-1)
    torch.testing.assert_close(by_logit.distillation, (F.cross_entropy(LOGITS, mean, reduction="none") * WEIGHTS).sum())
    assert not torch.isclose(by_logit.distillation, by_probability.distillation)


def test_kl_has_the_gradient_of_cross_entropy_and_is_zero_at_the_teacher():
    teacher = torch.randn(ROWS, CLASSES)
    gradients = []
    for kind in ("cross_entropy", "kl"):
        logits = LOGITS.clone().requires_grad_()
        options = LossOptions(label_weight=0, distill_loss=kind)
        multiclass(logits, TARGETS, weights=WEIGHTS, options=options, soft=Soft((teacher,))).total.backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)
    at_teacher = multiclass(
        teacher, TARGETS, weights=WEIGHTS, options=LossOptions(distill_loss="kl"), soft=Soft((teacher,))
    )
    assert abs(float(at_teacher.distillation)) < 1e-4
    clicks = binary(
        CLICK_LOGITS, CLICKS, weights=WEIGHTS, options=LossOptions(distill_loss="kl"), soft=Soft((CLICK_LOGITS,))
    )
    assert abs(float(clicks.distillation)) < 1e-4


def test_squared_logits_compares_with_the_mean_logit():
    a, b = torch.randn(ROWS), torch.randn(ROWS)
    options = LossOptions(distill_loss="squared_logits")
    sums = binary(CLICK_LOGITS, CLICKS, weights=WEIGHTS, options=options, soft=Soft((a, b)))
    torch.testing.assert_close(sums.distillation, (WEIGHTS * (CLICK_LOGITS - (a + b) / 2) ** 2).sum())


def test_no_gradient_reaches_a_teacher():
    teacher = torch.randn(ROWS, requires_grad=True)
    logits = CLICK_LOGITS.clone().requires_grad_()
    binary(logits, CLICKS, weights=WEIGHTS, options=LossOptions(), soft=Soft((teacher,))).total.backward()
    assert teacher.grad is None
    assert logits.grad is not None


def test_ragged_batches_sum_to_the_whole():
    whole = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=LossOptions(), soft=Soft((LOGITS.flip(0),)))
    parts = [
        multiclass(
            LOGITS[part],
            TARGETS[part],
            weights=WEIGHTS[part],
            options=LossOptions(),
            soft=Soft((LOGITS.flip(0)[part],)),
        )
        for part in (slice(0, 5), slice(5, 40), slice(40, ROWS))
    ]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
