"""Which of a run's models are taken elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from odist.config.schema import Config
from odist.engine import checkpoint
from odist.engine.finished import load_models, predictor
from odist.engine.problem import build_model
from odist.errors import UserError
from odist.run.folder import Run
from odist.tasks.base import Task

NAMES = ("best", "average", "ensemble")


@dataclass(frozen=True)
class Members:
    """Models of a run that predict together, by the mean of their probabilities.

    name: as it was asked for; groups: whose models these are; step: of their checkpoints
    averaged: whether these are averages of the weights (train.average)
    """

    name: str
    models: list[nn.Module]
    groups: list[int]
    step: int
    averaged: bool


def load_members(run: Run, config: Config, task: Task, *, member: str | None) -> Members:
    """Load the models that `member` names.

    member: a group's number: its last weights; `best`: the group with the lowest validation loss; `average`: the average
        of the weights of the group that predicts (train.average); `ensemble`: all groups; None: what the run itself
        predicts with
    Raises UserError for what the run does not have.
    """
    averaged = config.train.average != "none"
    sound = [group for group in config.trained_groups if group not in run.missing_groups]
    if member is None:
        models, step = load_models(run, config, task)
        mean = predictor(config) == "mean"
        return Members("ensemble" if mean else str(sound[0]), models, sound if mean else sound[:1], step, averaged)
    if member == "ensemble":
        if len(sound) < 2:
            raise UserError(f"--member ensemble: {run.path} has one group. Leave --member out.")
        groups = sound
    elif member == "average":
        if not averaged:
            raise UserError(
                f"--member average: {run.path} was trained without an average of its weights (train.average=none). Choose "
                "another member, or train with train.average=ema."
            )
        groups = sound[:1]
    elif member == "best":
        groups = [_best(run, task, sound)]
    else:
        groups, averaged = [_group(member, run, sound)], False
    found = checkpoint.common_step(run, groups)
    if found is None:
        load_models(run, config, task)  # says why there is no checkpoint
        raise UserError(f"{run.path}: groups {', '.join(map(str, groups))} have no checkpoint of one step.")
    models = []
    for group in groups:
        model = build_model(config, task, group=group)
        checkpoint.load_weights(run, group, step=found, model=model, averaged=averaged)
        models.append(model)
    return Members(member, models, groups, found, averaged)


def _group(member: str, run: Run, sound: list[int]) -> int:
    if not member.isdecimal() or int(member) not in sound:
        known = [*map(str, sound), *NAMES]
        raise UserError(f"--member {member}: {run.path} has no such member. Choose among: {', '.join(known)}.")
    return int(member)


def _best(run: Run, task: Task, sound: list[int]) -> int:
    """The group with the lowest loss on the validation part."""
    results = run.results["groups"]

    def loss(group: int) -> float:
        value = (results[group] or {}).get(task.main_metric)
        return math.inf if value is None else float(value)

    return min(sound, key=loss)
