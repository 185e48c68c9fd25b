"""Churn against loss over one setting, such as the learning rate: a line a system, so that no single choice decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from odist.claims.quantities import AGAINST, name_of
from odist.claims.recipe import Recipe
from odist.claims.record import Record
from odist.claims.retrains import Retrains, retrains_by_system
from odist.claims.style import Look
from odist.claims.table import estimate, markdown_table
from odist.config.identity import flatten
from odist.measure.intervals import Interval, jackknife, mean_interval, within_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class FrontierPoint:
    """One system at one value of the setting: mean loss over runs, churn over pairs of runs, with their intervals."""

    value: float
    loss: float
    loss_interval: Interval | None
    churn: float
    churn_interval: Interval | None


def frontier_lines(recipe: Recipe, records: Sequence[Record], *, variant: str) -> dict[str, list[FrontierPoint]]:
    """System -> its points by rising value. records: those made for the frontier, each with its `setting`"""
    if recipe.frontier is None:
        return {}
    key, metric = recipe.frontier.key, recipe.metrics[0]
    lines: dict[str, list[FrontierPoint]] = {}
    for setting in dict.fromkeys(record.setting for record in records if record.variant == variant):
        here = [record for record in records if (record.variant, record.setting) == (variant, setting)]
        for (_, system), own in retrains_by_system(here, recipe).items():
            value = float(dict(flatten(own.by_seed[own.seeds[0]].config))[key])
            point = _point(own, value=value, metric=metric, measure=recipe.churn_measure)
            if point is not None:
                lines.setdefault(system, []).append(point)
    order = [system for system in recipe.systems if system in lines]
    return {system: sorted(lines[system], key=lambda point: point.value) for system in order}


def _point(own: Retrains, *, value: float, metric: str, measure: str) -> FrontierPoint | None:
    losses = own.metric(metric, own.seeds)
    if not losses or not own.has(measure, own.seeds):
        return None
    churn, interval = jackknife(own.statistic(measure, own.seeds), len(own.seeds))
    of_loss = within_range(metric, mean_interval(losses))
    return FrontierPoint(
        value, float(np.mean(losses)), of_loss, churn, within_range(measure.removeprefix(AGAINST), interval)
    )


def frontier_parts(recipe: Recipe, lines: Mapping[str, Sequence[FrontierPoint]]) -> list[str]:
    """The table of one variant: churn and loss of every system at every value; nothing without lines."""
    if recipe.frontier is None or not lines:
        return []
    values = sorted({point.value for points in lines.values() for point in points})
    columns = {"label": "system"} | {f"{value:g}": f"{value:g}" for value in values}
    rows = []
    for system, points in lines.items():
        row = {"label": recipe.systems[system].full_label}
        for point in points:
            churn, loss = estimate(point.churn, point.churn_interval), estimate(point.loss, point.loss_interval)
            row[f"{point.value:g}"] = f"{churn}; {loss}"
        rows.append(row)
    metric = name_of(recipe.metrics[0])
    return [f"Churn; {metric}, at each `{recipe.frontier.key}`:\n", markdown_table(columns, rows)]


def draw_frontier(axes: Axes, lines: Mapping[str, Sequence[FrontierPoint]], looks: Mapping[str, Look]) -> None:
    """Draw a line a system through its points, from the smallest value of the setting to the largest."""
    for system, points in lines.items():
        own = looks[system]
        axes.plot(
            [point.churn for point in points],
            [point.loss for point in points],
            color=own.colour,
            linestyle=own.line,
            linewidth=0.9,
            marker=own.marker,
            markersize=3.0,
            markerfacecolor=own.face,
        )
