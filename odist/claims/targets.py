"""How long each system needs to be as good as the baseline: steps, examples and seconds to a target.

The targets are the baseline's own: its loss (or accuracy) at 50 % and at 75 % of its horizon, and the mean of its last
three evaluations. A run that never gets there is censored: its number is its horizon, and it is counted. Drawing and
judging are left to figure and summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from odist.claims.quantities import better, loss_or_accuracy, unit_of
from odist.claims.recipe import Recipe
from odist.claims.record import Record
from odist.claims.table import ABSENT, count, estimate, markdown_table
from odist.errors import UserError
from odist.measure.intervals import jackknife, within_range

LAST = 3  # evaluations of the baseline whose mean is the last target
SHARES = {"steps_to_50": 0.5, "steps_to_75": 0.75}
TO_END = "steps_to_end"
HEADINGS = {"steps_to_50": "50 %", "steps_to_75": "75 %", TO_END: "the end"}


@dataclass(frozen=True)
class Target:
    """A loss or accuracy of the baseline's, and the metric that says how many steps a run needs to reach it."""

    name: str
    value: float


def curve_of(record: Record) -> list[Mapping[str, Any]]:
    """Evaluations of what predicts for the run, by step: the mean of an ensemble where it was kept, else group 0."""
    rows = record.evaluations
    group = min((row.get("group", 0) for row in rows), default=0)  # -1: the mean of the groups
    return sorted((row for row in rows if row.get("group", 0) == group), key=lambda row: row["step"])


def targets_of(recipe: Recipe, records: Sequence[Record]) -> list[Target]:
    """The targets of one variant's records: means over the baseline's seeds; empty without a baseline."""
    if recipe.targets is None:
        return []
    metric, found = recipe.targets.metric, {}
    curves = [curve_of(record) for record in records if record.system == recipe.targets.system]
    for name, share in SHARES.items():
        values = []
        for curve in curves:
            before = [row for row in curve if row["step"] <= share * curve[-1]["step"]]
            values += [before[-1][metric]] if before else []
        found[name] = values
    found[TO_END] = [np.mean([row[metric] for row in curve[-LAST:]]) for curve in curves if curve]
    return [Target(name, float(np.mean(values))) for name, values in found.items() if values]


def first_reach(curve: Sequence[Mapping[str, Any]], *, metric: str, target: float) -> tuple[float, float] | None:
    """Step and training seconds at which a curve first is as good as `target`, straight lines between evaluations.

    As good: at or below it, or at or above it for a metric for which higher is better. None where it never is. At the first evaluation already: its own step, nothing being known before.
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


def with_targets(recipe: Recipe, records: Sequence[Record]) -> list[Record]:
    """The records with steps_to_*, examples_to_* and seconds_to_* among their metrics, and `censored`: those not reached.

    A student of two-phase distillation has its teachers' whole training before its first step: `first_phase_steps`.
    UserError for evaluations without the targets' metric.
    """
    if recipe.targets is None:
        return list(records)
    _check_metric(recipe, records)
    by_key = {(record.variant, record.system, record.seed): record for record in records}
    targets = {
        variant: targets_of(recipe, [record for record in records if record.variant == variant])
        for variant in recipe.variants
    }
    extended = []
    for record in records:
        curve, metrics, censored = curve_of(record), dict[str, float](), list[str]()
        teachers = recipe.systems[record.system].teachers if record.system in recipe.systems else None
        before = by_key.get((record.variant, teachers, record.seed)) if teachers else None
        if curve and not (teachers and before is None):
            steps, seconds, examples = _first_phase(before)
            record = replace(record, first_phase_steps=int(steps))
            each = record.results["total_examples"] / record.results["steps"]
            for target in targets[record.variant]:
                reached = first_reach(curve, metric=recipe.targets.metric, target=target.value)
                if reached is None:
                    censored.append(target.name)
                    reached = float(curve[-1]["step"]), float(curve[-1]["seconds"])
                metrics[target.name] = steps + reached[0]
                metrics[target.name.replace("steps", "examples")] = examples + each * reached[0]
                metrics[target.name.replace("steps", "seconds")] = seconds + reached[1]
        extended.append(replace(record.with_metrics(metrics), censored=tuple(censored)))
    return extended


def _check_metric(recipe: Recipe, records: Sequence[Record]) -> None:
    metric = recipe.targets.metric if recipe.targets else ""
    for row in (row for record in records for row in curve_of(record) if row.get(metric) is None):
        known = [name for name in row if name in recipe.metrics]
        raise UserError(f"recipe {recipe.name}, targets: the runs have no metric {metric!r} at every evaluation. "
                        f"Of the recipe's metrics they have: {', '.join(known) or 'none'}.")  # fmt: skip


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


def target_parts(recipe: Recipe, records: Sequence[Record]) -> list[str]:
    """The tables of one variant: steps to each target and their ratio to the baseline's; what the last one costs.

    records: of the variant, as `with_targets` gives them
    """
    targets = targets_of(recipe, records)
    if recipe.targets is None or not targets:
        return []
    own = {name: {r.seed: r for r in records if r.system == name} for name in recipe.systems}
    base = recipe.targets.system
    label, metric = recipe.systems[base].label, recipe.targets.metric
    where = ", ".join(f"{HEADINGS[target.name]}: {target.value:.4f}" for target in targets)
    named = "losses" if loss_or_accuracy(metric) == "loss" else loss_or_accuracy(metric)
    columns = {"label": "system"} | {t.name: f"steps to {HEADINGS[t.name]}" for t in targets}
    columns |= {f"{t.name}_ratio": f"times fewer, {HEADINGS[t.name]}" for t in targets}
    columns |= {"examples": "examples in all, to the end", "seconds": "seconds of a group, to the end"}
    rows = []
    for name, system in recipe.systems.items():
        if not own[name] or not all(t.name in r.metrics for t in targets for r in own[name].values()):
            continue
        row = {"label": system.full_label}
        for target in targets:
            row[target.name] = _steps(list(own[name].values()), target.name)
            row[f"{target.name}_ratio"] = "1" if name == base else _ratio(own[base], own[name], target.name)
        for cost in ("examples", "seconds"):
            values = [r.metrics[TO_END.replace("steps", cost)] for r in own[name].values()]
            missed = any(TO_END in r.censored for r in own[name].values())
            row[cost] = ("> " if missed else "") + count(float(np.mean(values)))
        rows.append(row)
    return [
        f"Steps to the {named} of {label} at 50 % and 75 % of its horizon and at its end ({where}{unit_of(metric)}; the last "
        f"is the mean of its last {LAST} evaluations):\n",
        markdown_table(columns, rows),
    ]


def _steps(records: Sequence[Record], name: str) -> str:
    values = [record.metrics[name] for record in records]
    missed = sum(name in record.censored for record in records)
    text = count(float(np.mean(values)))
    return text if not missed else f"> {text} ({missed} of {len(records)} never)"


def _ratio(base: Mapping[int, Record], other: Mapping[int, Record], name: str) -> str:
    """Mean steps of the baseline over the system's, jackknife over common seeds; a bound where a run is censored."""
    seeds = [seed for seed in base if seed in other]
    if not seeds:
        return ABSENT
    steps = [[side[seed].metrics[name] for seed in seeds] for side in (base, other)]

    def ratio(places: list[int]) -> float:
        return float(np.mean([steps[0][place] for place in places]) / np.mean([steps[1][place] for place in places]))

    value, interval = jackknife(ratio, len(seeds))
    text = estimate(value, within_range("ratio", interval))
    missed = [any(name in side[seed].censored for seed in seeds) for side in (base, other)]
    if all(missed):
        return ABSENT
    return f"> {text}" if missed[0] else f"< {text}" if missed[1] else text
