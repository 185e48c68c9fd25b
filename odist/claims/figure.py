"""The figure of a recipe's report: learning curves, the first metric against churn, the paper's own points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from odist.claims import style
from odist.claims.frontier import FrontierPoint, draw_frontier
from odist.claims.plot import BARS, ONE_MEMBER, Curves, Point, band_notes, draw_curves, draw_points, draw_tradeoff
from odist.claims.quantities import higher_is_better, loss_or_accuracy
from odist.claims.recipe import Recipe
from odist.claims.record import Record
from odist.claims.retrains import retrains_by_system
from odist.claims.style import Look
from odist.claims.summary import SystemSummary
from odist.claims.targets import LATEST, curve_of, first_phase_steps, percent, targets_of
from odist.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER_UNITS = {"nats": 1.0, "percent": 0.01}  # unit of a column of the paper's points -> factor to ours


def draw_report(
    base: Path,
    *,
    recipe: Recipe,
    summaries: Sequence[SystemSummary],
    records: Sequence[Record],
    frontiers: Mapping[str, Mapping[str, Sequence[FrontierPoint]]],
    paper: Mapping[str, Sequence[tuple[float, float]]] | None,
) -> list[Path]:
    """Draw `base`.svg, one row of panels a variant; the paths written.

    Learning curves of the first metric beside it against churn, or, in a recipe with targets, those of the targets'
    metric beside the paper's curves. A system has one look in all panels.
    frontiers: variant -> lines of the recipe's frontier, drawn with the first metric against churn
    paper: as `paper_points` gives it, None without a figure of the paper's
    """
    variants = [variant for variant in recipe.variants if any(s.variant == variant for s in summaries)]
    looks = style.looks(
        recipe.algorithms,
        shades={name: system.shade for name, system in recipe.systems.items() if system.shade is not None},
    )
    if recipe.targets is not None:
        return _draw_with_paper(base, recipe=recipe, variants=variants, looks=looks, records=records, paper=paper or {})
    metric, drawn = recipe.metrics[0], []
    with style.panels(2, rows=len(variants)) as (figure, axes):
        for index, variant in enumerate(variants):
            tradeoff, panel = axes[2 * index], axes[2 * index + 1]
            _draw_tradeoff(tradeoff, recipe, [s for s in summaries if s.variant == variant], looks)
            draw_frontier(tradeoff, frontiers[variant], looks)
            drawn += _draw_curves(panel, recipe, [r for r in records if r.variant == variant], looks, metric)
            if variant:
                tradeoff.set_title(recipe.variants[variant].label or variant)
        notes = [*_line_notes(records, drawn), BARS]
        style.legend(figure, _entries(recipe, looks, {s.system for s in summaries}), notes=[" ".join(notes)])
        return style.save(figure, base, kinds=("svg",))


def _entries(recipe: Recipe, looks: Mapping[str, Look], present: set[str]) -> dict[str, Look]:
    return {system.full_label: looks[name] for name, system in recipe.systems.items() if name in present}


def _line_notes(records: Sequence[Record], curves: Sequence[Curves]) -> list[str]:
    """What the curves are: how many seeds they are means of, their bands, and where one is not what predicts."""
    numbers = sorted({len(system.seeds) for system in curves})
    seeds = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}" if numbers else ""
    notes = [note.replace("over seeds", f"over {seeds} seeds") for note in band_notes(curves)]
    means = [record for record in records if record.results.get("predictor") == "mean"]
    one_member = any(row.get("group", 0) == 0 for record in means for row in curve_of(record))
    return [*notes, ONE_MEMBER] if one_member else notes


def _draw_tradeoff(axes: Axes, recipe: Recipe, summaries: Sequence[SystemSummary], looks: Mapping[str, Look]) -> None:
    points = points_of(recipe, summaries, looks)
    if points:
        draw_tradeoff(axes, points, metric=recipe.metrics[0], between=compared_with(recipe))
    else:
        axes.set_axis_off()


def points_of(recipe: Recipe, summaries: Sequence[SystemSummary], looks: Mapping[str, Look]) -> list[Point]:
    """The first metric against churn, a point for every system that has both."""
    points = []
    for summary in summaries:
        loss, of_loss = summary.estimate_of(recipe.metrics[0])
        churn, of_churn = summary.estimate_of(recipe.churn_measure)
        if loss is not None and churn is not None:
            points.append(Point(summary.system, looks[summary.system], churn, loss, of_churn, of_loss))
    return points


def compared_with(recipe: Recipe) -> str:
    """What the recipe's measure of churn is measured from, as an axis says it."""
    return "between retrains" if recipe.churn_against is None else "against the released model"


def _draw_curves(
    axes: Axes, recipe: Recipe, records: Sequence[Record], looks: Mapping[str, Look], metric: str
) -> list[Curves]:
    """Draw one line a system; the curves drawn."""
    import pandas as pd

    curves = []
    for name in recipe.systems:
        own = [record for record in records if record.system == name]
        frames = [pd.DataFrame(curve_of(record)) for record in own]
        for frame, record in zip(frames, own, strict=True):
            if recipe.targets is not None and not frame.empty:
                frame["step"] += first_phase_steps(recipe, record, records)
        frames = [frame for frame in frames if not frame.empty and metric in frame]
        if frames:
            curves.append(Curves(name, looks[name], frames))
    if curves:
        draw_curves(axes, curves, metric=metric, x="steps" if recipe.targets else "examples")
    else:
        axes.set_axis_off()
    return curves


def _draw_with_paper(
    base: Path,
    *,
    recipe: Recipe,
    variants: Sequence[str],
    looks: Mapping[str, Look],
    records: Sequence[Record],
    paper: Mapping[str, Sequence[tuple[float, float]]],
) -> list[Path]:
    """One row of panels a variant, ours and the paper's."""
    metric = recipe.targets.metric if recipe.targets else recipe.metrics[0]
    columns, drawn, dotted = 2 if paper else 1, [], False
    with style.panels(columns, rows=len(variants)) as (figure, axes):
        for index, variant in enumerate(variants):
            ours, *theirs = axes[columns * index : columns * (index + 1)]
            own = [record for record in records if record.variant == variant]
            drawn += _draw_curves(ours, recipe, own, looks, metric)
            baseline = retrains_by_system(own, recipe).get((variant, recipe.targets.system if recipe.targets else ""))
            ends = [target.value for target in targets_of(recipe, baseline)]
            for value in ends[-1:]:
                ours.axhline(value, color="#555555", linewidth=0.8, linestyle=":")
                dotted = True
            curves = [row[metric] for record in own for row in curve_of(record)]
            if ends and curves:  # the first evaluations would flatten what is compared
                ours.set_ylim(*_limits(metric, curves, first_target=ends[0]))
            ours.set_title(recipe.variants[variant].label or "here")
            for axis in theirs:
                points = [
                    (looks[name], paper[str(system.paper_curve)])
                    for name, system in recipe.systems.items()
                    if system.paper_curve in paper
                ]
                draw_points(axis, points, metric=metric)
                axis.set_title("the paper (Anil et al. 2018)")
        notes = _line_notes(records, drawn)
        if dotted and recipe.targets:
            notes.append(
                f"Dotted: the {loss_or_accuracy(metric)} of {recipe.systems[recipe.targets.system].label} at "
                f"{percent(LATEST)} of its horizon, to which steps are counted."
            )
        present = {record.system for record in records}
        style.legend(figure, _entries(recipe, looks, present), notes=[" ".join(notes)] if notes else [])
        return style.save(figure, base, kinds=("svg",))


def _limits(metric: str, values: Sequence[float], *, first_target: float) -> tuple[float, float]:
    """Lower and upper end of the axis: the best value, and beyond the first target three times the distance to it."""
    if higher_is_better(metric):
        best = max(values)
        return max(0.0, min(first_target - 3 * (best - first_target), best - 0.1)), best + 0.02
    best = min(values)
    return best - 0.02, max(first_target + 3 * (first_target - best), best + 0.1)


def paper_points(path: Path, *, metric: str) -> dict[str, list[tuple[float, float]]]:
    """The paper's curves, system -> (step, value), from the CSV that lies beside the report.

    metric: the one that is drawn. The CSV's columns are system, step and the metric with its unit: METRIC_nats, or
    METRIC_percent, which becomes a fraction, as ours are. UserError for another third column.
    """
    import csv

    with open(path, encoding="utf-8", newline="") as file:
        heading, *rows = list(csv.reader(file))
    units = {f"{metric}_{unit}": factor for unit, factor in PAPER_UNITS.items()}
    if len(heading) != 3 or heading[2] not in units:
        raise UserError(
            f"{path}: its columns are {', '.join(heading)}, the recipe's targets are of {metric}. "
            f"Expected system, step, and one of: {', '.join(units)}."
        )
    curves: dict[str, list[tuple[float, float]]] = {}
    for system, step, value in rows:
        curves.setdefault(system, []).append((float(step), float(value) * units[heading[2]]))
    return {system: sorted(points) for system, points in curves.items()}
