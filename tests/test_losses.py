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


def test_the_two_losses_of_logits_have_the_scales_of_their_sources():
    """Half the squared distance (Ba and Caruana 2014), and torch's mean squared error."""
    teacher = torch.randn(ROWS, CLASSES)
    found = {}
    for kind in ("logit_regression", "squared_logits"):
        options = LossOptions(distill_loss=kind)
        many = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=options, soft=Soft((teacher,))).distillation
        one = binary(CLICK_LOGITS, CLICKS, weights=WEIGHTS, options=options, soft=Soft((teacher[:, 0],))).distillation
        found[kind] = (many, one)
    distances = ((LOGITS - teacher) ** 2).sum(dim=1), (CLICK_LOGITS - teacher[:, 0]) ** 2
    expected = [(WEIGHTS * distance / 2).sum() for distance in distances]
    torch.testing.assert_close(found["logit_regression"], tuple(expected))
    errors = [
        F.mse_loss(LOGITS, teacher, reduction="none").mean(dim=1),
        F.mse_loss(CLICK_LOGITS, teacher[:, 0], reduction="none"),
    ]
    torch.testing.assert_close(found["squared_logits"], tuple((WEIGHTS * error).sum() for error in errors))


def test_squared_logits_have_twice_the_gradient_of_a_high_temperature():
    """Hinton et al. 2015, equation 4: of cross-entropies at temperature T, times T squared, for logits of mean 0."""
    centred = LOGITS - LOGITS.mean(dim=1, keepdim=True)
    teacher = torch.randn(ROWS, CLASSES)
    teacher -= teacher.mean(dim=1, keepdim=True)
    logits, hot = centred.clone().requires_grad_(), centred.clone().double().requires_grad_()
    options = LossOptions(label_weight=0, distill_loss="squared_logits")
    multiclass(logits, TARGETS, weights=torch.ones(ROWS), options=options, soft=Soft((teacher,))).total.backward()
    temperature = 1e4
    soft = (teacher.double() / temperature).softmax(dim=1)
    (F.cross_entropy(hot / temperature, soft, reduction="sum") * temperature**2).backward()
    torch.testing.assert_close(logits.grad.double(), 2 * hot.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
def test_a_temperature_cools_teacher_and_student_and_counts_its_square(kind):
    """Against torch, with two teachers, and that the label's loss stays as it is."""
    first, second, warm = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES), 3.0
    options = LossOptions(label_weight=0.5, distill_weight=0.7, distill_loss=kind, temperature=warm)
    logits, other = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    sums = multiclass(logits, TARGETS, weights=WEIGHTS, options=options, soft=Soft((first, second)))
    target = ((first / warm).softmax(dim=1) + (second / warm).softmax(dim=1)) / 2
    each = F.cross_entropy(other / warm, target, reduction="none")
    if kind == "kl":
        each = F.kl_div(F.log_softmax(other / warm, dim=1), target, reduction="none").sum(dim=1)
    label = (F.cross_entropy(other, TARGETS, reduction="none") * WEIGHTS).sum()
    distillation = (each * WEIGHTS).sum() * warm**2
    torch.testing.assert_close((sums.label, sums.distillation), (label, distillation))
    sums.total.backward()
    (0.5 * label + 0.7 * distillation).backward()
    torch.testing.assert_close(logits.grad, other.grad)
    clicks = binary(CLICK_LOGITS, CLICKS, weights=WEIGHTS, options=options, soft=Soft((first[:, 0],)))
    pair = torch.stack([torch.zeros(ROWS), CLICK_LOGITS], dim=1), torch.stack([torch.zeros(ROWS), first[:, 0]], dim=1)
    same = multiclass(pair[0], CLICKS.long(), weights=WEIGHTS, options=options, soft=Soft((pair[1],)))
    torch.testing.assert_close((clicks.label, clicks.distillation), (same.label, same.distillation))


@pytest.mark.parametrize("kind", ["cross_entropy", "squared_logits"])
def test_a_teacher_may_have_a_share_of_its_weight(kind):
    soft = Soft((torch.randn(ROWS, CLASSES),))
    options = LossOptions(distill_weight=0.8, distill_loss=kind)
    half = multiclass(LOGITS, TARGETS, weights=WEIGHTS, options=options, soft=Soft(soft.values, weight=0.5))
    expected = multiclass(
        LOGITS, TARGETS, weights=WEIGHTS, options=LossOptions(distill_weight=0.4, distill_loss=kind), soft=soft
    )
    torch.testing.assert_close(half.total, expected.total)
    torch.testing.assert_close(half.distillation, expected.distillation)


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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_from_the_students_side_is_torchs_with_the_sides_exchanged(temperature):
    """Of two teachers' mean probabilities; its gradient by torch's own arithmetic, binary and over classes."""
    made = torch.Generator().manual_seed(5)
    options = LossOptions(label_weight=0.0, distill_loss="reverse_kl", temperature=temperature)
    student, first, second = (torch.randn(6, 4, generator=made).requires_grad_() for _ in range(3))
    weights = torch.rand(6, generator=made)
    found = multiclass(
        student, torch.zeros(6, dtype=torch.int64), weights=weights, options=options, soft=Soft((first, second))
    )
    target = (F.softmax(first / temperature, dim=1) + F.softmax(second / temperature, dim=1)).detach() / 2
    own = F.softmax(student / temperature, dim=1)
    expected = (F.kl_div(target.log(), own, reduction="none").sum(dim=1) * weights).sum() * temperature**2
    torch.testing.assert_close(found.distillation, expected)
    (mine,), (theirs,) = (torch.autograd.grad(one, student) for one in (found.total, expected))
    torch.testing.assert_close(mine, theirs)

    clicks, other = student[:, 0], first[:, 0]
    found = binary(clicks, torch.ones(6), weights=weights, options=options, soft=Soft((other,)))
    pair = torch.stack([torch.sigmoid(clicks / temperature), torch.sigmoid(-clicks / temperature)], dim=1)
    target = torch.stack([torch.sigmoid(other / temperature), torch.sigmoid(-other / temperature)], dim=1).detach()
    expected = (F.kl_div(target.log(), pair, reduction="none").sum(dim=1) * weights).sum() * temperature**2
    torch.testing.assert_close(found.distillation, expected)
    (mine,), (theirs,) = (torch.autograd.grad(one, student) for one in (found.total, expected))
    torch.testing.assert_close(mine, theirs)
