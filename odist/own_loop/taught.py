"""What every teacher of one's own loop has in common: a loss to add, a step to count, a state to save.

The teachers are those of the trainer, and so are the losses: see odist.teachers and odist.losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from odist.errors import UserError
from odist.losses import LOGIT_LOSSES, PREDICTIONS, LossOptions, distillation
from odist.tasks.base import Batch, Carry
from odist.teachers import AVERAGES, LOSSES, PRECISIONS
from odist.teachers import precision as precisions
from odist.teachers.base import Teacher
from odist.wrapping import is_sharded, unwrapped

OwnForward = Callable[..., Any]  # model, *inputs -> its predictions


class TeachingOptions(TypedDict, total=False):
    """How teachers are heard, by an `odist.Codistiller` and an `odist.Distiller` alike; each may be left out.

    burn_in: steps before they are heard (0); ramp: steps over which their weight then rises (0)
    weight: of their loss (1.0)
    predicts: "classes" (softmax over the last dimension, for tokens too), "binary" (a logit each: clicks, several labels)
        or "values" (regression, by squared distance)
    loss, average, temperature: as the keys below `algorithm`, see `odist train --help` ("cross_entropy",
        "probabilities", 1.0)
    teacher_precision: of their products: "auto", as the model comes, "fp32", "bf16" or "int8"
    forward: model, *inputs -> predictions; None calls the model with the inputs, or by name with one mapping
    """

    burn_in: int
    ramp: int
    weight: float
    predicts: str
    loss: str
    average: str
    temperature: float
    teacher_precision: str
    forward: OwnForward | None


DEFAULTS: TeachingOptions = {
    "burn_in": 0,
    "ramp": 0,
    "weight": 1.0,
    "predicts": "classes",
    "loss": "cross_entropy",
    "average": "probabilities",
    "temperature": 1.0,
    "teacher_precision": "auto",
    "forward": None,
}


class Taught:
    """A teacher in a training loop of one's own.

    teacher: where soft targets come from; options: how it is heard, as `checked` gives them
    steps: completed so far
    """

    def __init__(self, teacher: Teacher, options: TeachingOptions) -> None:
        self.teacher = teacher
        self.predicts = options["predicts"]
        self.options = LossOptions(
            distill_weight=options["weight"],
            distill_loss=options["loss"],
            average=options["average"],
            temperature=options["temperature"],
        )
        self.steps = 0

    def loss(
        self,
        outputs: Tensor,
        *inputs: Any,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        count: Tensor | float | None = None,
    ) -> Tensor:
        """The teachers' loss on a batch, to be added to one's own; 0 while there is no teacher to hear.

        outputs: the model's predictions: logits [batch, ..., classes] (classes), [batch, ...] (binary), or outputs
            [batch, ...] (values)
        inputs: of the batch, as `forward` takes them behind the model
        targets: with them the label loss is part of the result, both from one pass over the logits: class numbers
            int64 [batch, ...], or [batch, ...] like the outputs
        weights: [batch, ...] of each prediction, such as a padding mask; a row's weight counts for all that follows it
        count: what the sum is divided by; None: the sum of the weights, so that the result is a mean over the batch

        Call it where the model is called, under the same autocast. Half precision is worked out in float32.
        """
        predictions = _predictions(outputs)
        each = _spread(weights, predictions, predicts=self.predicts)
        divisor = _count(each, weights) if count is None else count
        batch = Batch(inputs, targets=predictions.detach(), weights=each)
        soft = self.teacher.soft_targets(self.steps, 0, batch, predictions.detach())
        if self.predicts != "classes" or self.options.distill_loss in LOGIT_LOSSES:
            predictions = predictions.to(each.dtype)
        if targets is not None:
            losses = PREDICTIONS[self.predicts]
            return losses(predictions, targets, weights=each, options=self.options, soft=soft).total / divisor
        if soft is None:
            return each.new_zeros(())
        found = distillation(predictions, soft=soft, weights=each, options=self.options, predicts=self.predicts)
        return found / divisor

    def step(self) -> None:
        """Count an optimiser step; to be called after each, not after every batch that is accumulated."""
        self.steps += 1

    def log(self) -> dict[str, Any]:
        """What there is to say about the teachers since the last call."""
        return self.teacher.log()

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs: the steps so far, and the teachers in use."""
        return {"steps": self.steps, "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.steps = state["steps"]
        self.teacher.load_state_dict(state["teacher"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Taught:
        return self  # a copy of a model that holds it has the same teacher


def checked(given: TeachingOptions, *models: nn.Module) -> TeachingOptions:
    """What was given, and the defaults of the rest.

    models: that teach, or are like those that will
    Raises UserError for options that no teacher can have, and TypeError for a name that is none.
    """
    unknown = next((name for name in given if name not in DEFAULTS), None)
    if unknown is not None:
        raise TypeError(f"unexpected keyword argument {unknown!r}: choose {', '.join(map(repr, DEFAULTS))}.")
    options: TeachingOptions = {**DEFAULTS, **given}
    for name, value, choices in (
        ("predicts", options["predicts"], PREDICTIONS),
        ("loss", options["loss"], LOSSES),
        ("average", options["average"], AVERAGES),
        ("teacher_precision", options["teacher_precision"], PRECISIONS),
    ):
        if value not in choices:
            raise UserError(f"{name}={value!r}: choose {', '.join(map(repr, choices))}.")
    weight, temperature = options["weight"], options["temperature"]
    if weight < 0 or temperature <= 0:
        raise UserError(f"weight={weight:g}, temperature={temperature:g}: give 0 or more, and more than 0.")
    if temperature != 1 and (options["predicts"] == "values" or options["loss"] in LOGIT_LOSSES):
        raise UserError(f"temperature={temperature:g}: losses that compare outputs have none. Give temperature=1.")
    check_counts(0, burn_in=options["burn_in"], ramp=options["ramp"])
    for model in models:
        _check_precision(model, options["teacher_precision"])
    return options


def check_counts(least: int, **counts: int) -> None:
    """Raise UserError for what is not a whole number, or below `least`."""
    for name, number in counts.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise UserError(f"{name}={number!r}: give a whole number, {least} or more.")


def _check_precision(model: nn.Module, precision: str) -> None:
    """Raise UserError for a precision in which a model cannot teach."""
    if not is_sharded(model):
        precisions.check(unwrapped(model), precision)


def calling(forward: OwnForward | None) -> Callable[[nn.Module, Batch, Carry], tuple[Tensor, Carry]]:
    """A forward for teachers of a forward of one's own; None calls the model, with one mapping by its names."""

    def call(model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        inputs: tuple[Any, ...] = batch.inputs
        if forward is not None:
            outputs = forward(model, *inputs)
        elif len(inputs) == 1 and isinstance(inputs[0], Mapping):
            outputs = model(**inputs[0])
        else:
            outputs = model(*inputs)
        return _predictions(outputs), None

    return call


def _predictions(outputs: Any) -> Tensor:
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise UserError(
            f"the model gives {type(found).__name__}, not a tensor of predictions. Say with forward= how to call it: "
            "forward=lambda model, x: model(x)[0]."
        )
    return found


def _spread(weights: Tensor | None, predictions: Tensor, *, predicts: str) -> Tensor:
    """A weight for each prediction, float32 (float64 for outputs of that type)."""
    if predicts == "classes" and predictions.ndim < 2:
        raise UserError(
            f"predictions of shape {list(predictions.shape)}: classes stand along the last of at least two dimensions. For "
            "one logit a row give predicts='binary', for regression predicts='values'."
        )
    shape = predictions.shape[:-1] if predicts == "classes" else predictions.shape
    dtype = torch.float64 if predictions.dtype == torch.float64 else torch.float32
    if weights is None:
        return torch.ones(shape, dtype=dtype, device=predictions.device)
    if weights.ndim > len(shape) or weights.shape != shape[: weights.ndim]:
        raise UserError(
            f"weights of shape {list(weights.shape)}: expected one for each of the predictions, {list(shape)}, or for each row."
        )
    own = weights.to(device=predictions.device, dtype=dtype)
    return own.reshape(*own.shape, *[1] * (len(shape) - own.ndim)).expand(shape)


def _count(each: Tensor, weights: Tensor | None) -> Tensor | float:
    if weights is None:
        return max(1, each.numel())
    total = each.sum()
    return torch.where(total > 0, total, torch.ones_like(total))  # nothing but padding: the sum is 0, too
