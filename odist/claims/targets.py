"""How long each system needs to be as good as the baseline: steps, examples and seconds to a target.

The targets are the baseline's own: its loss (or accuracy) at 50 %, 75 % and 85 % of its horizon. The last lies before
its end, so that nearly every run of the baseline reaches it and a claim about speed can fail. A run that never gets
there is censored: it counts with its horizon, a lower bound, and the verdict says what the bound decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from odist.claims.quantities import better, loss_or_accuracy, unit_of
from odist.claims.recipe import Recipe
from odist.claims.record import Record
from odist.claims.retrains import Copy, Retrains, copies_of, models_of, retrains_by_system
from odist.claims.table import ABSENT, count, estimate, markdown_table
from odist.errors import UserError
from odist.measure.intervals import jackknife, within_range

SHARES = {"steps_to_50": 0.5, "steps_to_75": 0.75, "steps_to_85": 0.85}
LATEST = "steps_to_85"
ENOUGH = 0.9  # of the baseline's models have to reach a target; below it the page says so

TimesTo = dict[tuple[str, str, int, int], Copy]  # by variant, system, seed and group


@dataclass(frozen=True)
class Target:
    """A loss or accuracy of the baseline's, and the metric that says how many steps a run needs to reach it."""

    name: str
    value: float


def percent(target: str) -> str:
    return f"{SHARES[target]:.0%}".replace("%", " %")


def curve_of(record: Record, group: int | None = None) -> list[Mapping[str, Any]]:
    """Evaluations of one group by step.

    group: None for what predicts, the mean of an ensemble where it was kept, else group 0
    """
    rows = record.evaluations
    if group is None:
        group = min((row.get("group", 0) for row in rows), default=0)
    return sorted((row for row in rows if row.get("group", 0) == group), key=lambda row: row["step"])


def targets_of(recipe: Recipe, baseline: Retrains | None) -> list[Target]:
    """The targets of one variant, means over the baseline's runs and over the copies of each, empty if it has none."""
    if recipe.targets is None or baseline is None:
        return []
    metric, targets = recipe.targets.metric, []
    for name, share in SHARES.items():
        means = []
        for seed in baseline.seeds:
            values = []
            for copy in baseline.copies(seed):
                curve = curve_of(baseline.source(seed), copy.group)
                before = [row for row in curve if row["step"] <= share * curve[-1]["step"]]
                values += [before[-1][metric]] if before else []
            means += [np.mean(values)] if values else []
        targets += [Target(name, float(np.mean(means)))] if means else []
    return targets


def first_reach(curve: Sequence[Mapping[str, Any]], *, metric: str, target: float) -> tuple[float, float] | None:
    """Step and training seconds at which a curve first is as good as `target`, straight lines between evaluations.

    As good: at or below it, or at or above it for a metric for which higher is better. None where it never is. A curve
    that is as good at its first evaluation has reached it there, nothing being known before.
    """
    previous = None
    for row in curve:
        if not better(metric, target, row[metric]):
            if previous is None:
                return float(row["step"]), float(row["seconds"])
            share = (previous[metric] - target) / (previous[metric] - row[metric])
            return tuple(previous[key] + share * (row[key] - previous[key]) for key in ("step", "seconds"))
        previous = row
    return None


def times_to_targets(recipe: Recipe, records: Sequence[Record]) -> TimesTo:
    """Every model of every record, and the mean of every ensemble, with steps_to_*, examples_to_* and seconds_to_* in
    its metrics.

    A student of two-phase distillation has its teachers' whole training before its first step.
    UserError for evaluations without the targets' metric.
    """
    if recipe.targets is None:
        return {}
    _check_metric(recipe, records)
    baselines = {
        variant: found
        for (variant, system), found in retrains_by_system(records, recipe).items()
        if system == recipe.targets.system
    }
    timed: TimesTo = {}
    for record in records:
        before = teachers_of(recipe, record, records)
        if before is None and record.system in recipe.systems and recipe.systems[record.system].teachers:
            continue
        targets = targets_of(recipe, baselines.get(record.variant))
        for copy in {own.group: own for own in (*models_of(record), *copies_of(record))}.values():
            if curve := curve_of(record, copy.group):
                key = (record.variant, record.system, record.seed, copy.group)
                timed[key] = _timed(copy, curve, record, before=before, targets=targets, metric=recipe.targets.metric)
    return timed


def _timed(
    copy: Copy,
    curve: Sequence[Mapping[str, Any]],
    record: Record,
    *,
    before: Record | None,
    targets: Sequence[Target],
    metric: str,
) -> Copy:
    """The copy with its steps, examples and seconds to each target. before: the record of its teachers, None without"""
    first = _first_phase(before)
    each = record.results["total_examples"] / record.results["steps"]
    metrics, longest = dict(copy.metrics), {}
    for target in targets:
        reached = first_reach(curve, metric=metric, target=target.value)
        if reached is None:
            reached = float(curve[-1]["step"]), float(curve[-1]["seconds"])
            longest[target.name] = first[0] + 2 * reached[0]
        metrics[target.name] = first[0] + reached[0]
        metrics[target.name.replace("steps", "seconds")] = first[1] + reached[1]
        metrics[target.name.replace("steps", "examples")] = first[2] + each * reached[0]
    return replace(copy, metrics=metrics, longest=longest)


def first_phase_steps(recipe: Recipe, record: Record, records: Sequence[Record]) -> int:
    """Steps of the teachers' training before a student's first; 0 for a system without teachers."""
    return int(_first_phase(teachers_of(recipe, record, records))[0])


def teachers_of(recipe: Recipe, record: Record, records: Sequence[Record]) -> Record | None:
    """The run whose models taught this one, by the name of its folder; None for a system without teachers."""
    teachers = recipe.systems[record.system].teachers if record.system in recipe.systems else None
    names = (record.config.get("algorithm") or {}).get("teachers") or ()
    own = [one for one in records if (one.variant, one.system) == (record.variant, teachers)]
    return next((one for one in own for name in names if name == one.name or name.startswith(f"{one.name}-")), None)


def _check_metric(recipe: Recipe, records: Sequence[Record]) -> None:
    metric = recipe.targets.metric if recipe.targets else ""
    for row in (row for record in records for row in curve_of(record) if row.get(metric) is None):
        known = [name for name in row if name in recipe.metrics]
        raise UserError(
            f"recipe {recipe.name}, targets: the runs have no metric {metric!r} at every evaluation. "
            f"Of the recipe's metrics they have: {', '.join(known) or 'none'}."
        )


def _first_phase(teachers: Record | None) -> tuple[float, float, float]:
    """Steps, seconds of one group and examples in all of the teachers' training; zeros without teachers."""
    if teachers is None:
        return 0.0, 0.0, 0.0
    results = teachers.results
    return (
        float(results["steps"]),
        max(group["seconds"] for group in teachers.groups),
        float(results["total_examples"]),
    )


def target_parts(recipe: Recipe, retrains: Mapping[str, Retrains]) -> list[str]:
    """The tables of one variant: steps to each target and their ratio to the baseline's; what the last one costs.

    retrains: of each system of the variant, with their times
    """
    if recipe.targets is None or recipe.targets.system not in retrains:
        return []
    base = retrains[recipe.targets.system]
    targets = targets_of(recipe, base)
    if not targets:
        return []
    label, metric = recipe.systems[recipe.targets.system].label, recipe.targets.metric
    where = ", ".join(f"{percent(target.name)}: {target.value:.4f}" for target in targets)
    named = "losses" if loss_or_accuracy(metric) == "loss" else loss_or_accuracy(metric)
    columns = {"label": "system"} | {t.name: f"steps to {percent(t.name)}" for t in targets}
    columns |= {f"{t.name}_ratio": f"times fewer, {percent(t.name)}" for t in targets}
    last = targets[-1].name
    columns |= {
        "examples": f"examples in all, to {percent(last)}",
        "seconds": f"seconds of a group, to {percent(last)}",
    }
    rows = []
    for name, own in retrains.items():
        if not all(own.has(target.name, own.seeds) for target in targets):
            continue
        row = {"label": recipe.systems[name].full_label}
        for target in targets:
            row[target.name] = _steps(own, target.name)
            row[f"{target.name}_ratio"] = "1" if own is base else _ratio(base, own, target.name)
        missed = own.num_censored(last, own.seeds) > 0
        for cost in ("examples", "seconds"):
            values = own.metric(last.replace("steps", cost), own.seeds)
            row[cost] = ("> " if missed else "") + count(float(np.mean(values)))
        rows.append(row)
    few = [
        target
        for target in targets
        if base.num_censored(target.name, base.seeds) > (1 - ENOUGH) * base.num_copies(base.seeds)
    ]
    notes = [
        f"Note: {base.num_censored(target.name, base.seeds)} of {base.num_copies(base.seeds)} models of {label} never reach "
        f"the target at {percent(target.name)} themselves; comparisons with it rest on bounds.\n"
        for target in few
    ]
    return [
        f"Steps to the {named} of {label} at 50 %, 75 % and 85 % of its horizon ({where}{unit_of(metric)}):\n",
        markdown_table(columns, rows),
        *notes,
    ]


def _steps(own: Retrains, name: str) -> str:
    text = count(float(np.mean(own.metric(name, own.seeds))))
    missed = own.num_censored(name, own.seeds)
    return text if not missed else f"> {text} ({missed} of {own.num_copies(own.seeds)} never)"


def _ratio(base: Retrains, other: Retrains, name: str) -> str:
    """Mean steps of the baseline over the system's, jackknife over common seeds; a bound where a copy is censored."""
    seeds = [seed for seed in base.seeds if seed in other.seeds]
    if not seeds:
        return ABSENT
    above, below = base.statistic(name, seeds), other.statistic(name, seeds)
    value, interval = jackknife(lambda places: above(places) / below(places), len(seeds))
    text = estimate(value, within_range("ratio", interval))
    missed = [side.num_censored(name, seeds) > 0 for side in (base, other)]
    if all(missed):
        return ABSENT
    return f"> {text}" if missed[0] else f"< {text}" if missed[1] else text
