"""Tune a recipe: one setting of every system, on rows and seeds that are not reported.

The rules are the same for all systems: a grid by factors of two, as many trials for each, the best value inside
the grid. Where the best value of some system lies at an edge, that edge is extended for every system of the
variant, a limited number of times. Every trial is an `odist train` process (odist.claims.jobs); what was found is
written for odist.claims.reproduce, which uses it, and for the report, which shows it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from odist.claims.collect import trial_of
from odist.claims.jobs import Echo, train_all, train_command
from odist.claims.plan import plan_runs
from odist.claims.planned import PlannedRun
from odist.claims.recipe import Recipe, Tuning
from odist.claims.record import TRIALS_FILE, Trial, read_lines, update_lines
from odist.claims.tuning import (
    FILE,
    ONE_VARIANT,
    Tried,
    TunedSystem,
    TunedVariant,
    TuningFile,
    choose,
    read_tuning,
    settings,
    towards_baseline,
)
from odist.errors import UserError
from odist.files import alone
from odist.run.folder import Run


@dataclass(frozen=True)
class TuneResult:
    """What `tune` did.

    path: of tuning.json; chosen: (variant, system) -> value; at_edge: those still at an edge of the grid
    commands: `odist train` command lines of all trials; left_out: variants, each with the variable it needs
    """

    path: Path
    chosen: dict[tuple[str, str], float | None] = field(default_factory=dict)
    at_edge: dict[tuple[str, str], str] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def tune(
    name_or_path: str | Path,
    *,
    scale: str | None = None,
    output: Path = Path("reports"),
    runs_dir: Path = Path("runs"),
    jobs: int | None = None,
    data_path: Path | None = None,
    variants: Sequence[str] = (),
    dry_run: bool = False,
    echo: Echo = print,
) -> TuneResult:
    """Run the trials of a recipe's `tuning` section and write `output`/NAME/tuning.json.

    Arguments as of `odist.claims.reproduce.reproduce`. One small record of every trial goes to
    `output`/NAME/tuning.jsonl; a trial's folder below `runs_dir`/NAME/SCALE/tuning/ keeps its numbers, not its
    weights. Variants and scales that are not tuned this time keep what was found before.
    Raises UserError for a recipe without the section or the variant, OdistError naming the trials that failed,
    Interrupted.
    """
    planned = plan_runs(name_or_path, scale=scale, data_path=data_path, variants=variants)
    recipe, scale = planned.recipe, planned.scale
    rules = recipe.tuning
    if rules is None:
        raise UserError(f"recipe {recipe.name} has no `tuning` section. recipes/criteo_table1.yaml shows one.")
    if recipe.runs_of:
        owner = recipe.runs_of
        raise UserError(f"recipe {recipe.name} uses the runs and the tuning of {owner}. Type: odist tune {owner}")
    rules = replace(rules, grid=recipe.layer(scale).tuning_grid or rules.grid)
    planned.tell_left_out(echo)
    systems = list(
        {(run.variant, run.system): run for run in planned.runs if not recipe.systems[run.system].tuned_with}.values()
    )
    folder, place = output / recipe.name, runs_dir / recipe.name / scale / "tuning"
    result = TuneResult(folder / FILE, left_out=planned.left_out)
    if dry_run:
        for trial in _trials(systems, rules, rules.grid):
            result.commands.append(train_command(trial, place / trial.name))
            echo(" ".join(result.commands[-1]))
        return result
    read_tuning(folder / FILE)  # a file that cannot be added to is refused before hours of trials, not after
    read_lines(folder / TRIALS_FILE, Trial)
    for variant in dict.fromkeys(run.variant for run in systems):
        own = [run for run in systems if run.variant == variant]
        of_variant = replace(rules, seeds=recipe.variants[variant].tuning_seeds or rules.seeds)
        found, trials = _tune_variant(own, of_variant, place=place, jobs=jobs or os.cpu_count() or 1, echo=echo)
        found = _towards(found, baseline=recipe.reference)
        _write(recipe, found, trials, scale=scale, variant=variant, folder=folder, place=place)
        result.commands.extend([train_command(trial, place / trial.name) for trial in trials])
        for system, entry in found.systems.items():
            result.chosen[variant, system] = entry.chosen
            if entry.at_edge:
                result.at_edge[variant, system] = entry.at_edge
            _tell(echo, rules, variant=variant, system=system, entry=entry)
    return result


def _tell(echo: Echo, rules: Tuning, *, variant: str, system: str, entry: TunedSystem) -> None:
    name = " ".join(part for part in (variant, system) if part)
    if entry.chosen is None:
        echo(f"{name}: every trial diverged, nothing chosen")
        return
    where = f", at the {entry.at_edge} edge of a grid extended as often as allowed" if entry.at_edge else ""
    echo(f"{name}: {rules.key}={entry.chosen:g}{where}")


def _trials(systems: Sequence[PlannedRun], rules: Tuning, grid: Sequence[float]) -> list[PlannedRun]:
    """Every system with every value and every seed."""
    short = rules.key.rsplit(".", 1)[-1]
    trials = []
    for run in systems:
        for value in grid:
            overrides = run.override([*rules.overrides, f"{rules.key}={value:g}"])
            trials += [
                PlannedRun(run.variant, run.system, seed, overrides, f"{short}{value:g}") for seed in rules.seeds
            ]
    return trials


def _tune_variant(
    systems: Sequence[PlannedRun], rules: Tuning, *, place: Path, jobs: int, echo: Echo
) -> tuple[TunedVariant, list[PlannedRun]]:
    """Train the grid of one variant, extended where needed; what was found, and all trials."""
    grid = list(rules.grid)
    added = {"low": 0, "high": 0}
    done: set[str] = set()
    while True:
        trials = _trials(systems, rules, grid)
        new_trials = [trial for trial in trials if trial.name not in done]
        paths = [place / trial.name for trial in new_trials]
        train_all(new_trials, paths=paths, jobs=jobs, echo=echo, may_diverge=True, ended=_drop_weights)
        done |= {trial.name for trial in new_trials}
        entries = {run.system: _entry(run.system, trials, rules, grid=grid, place=place) for run in systems}
        edges = {entry.at_edge for entry in entries.values()} - {None}
        new = [edge for edge in ("low", "high") if edge in edges and added[edge] < rules.extensions]
        if not new:
            break
        for edge in new:
            added[edge] += 1
            grid = [grid[0] / 2, *grid] if edge == "low" else [*grid, grid[-1] * 2]
        values = ", ".join(f"{value:g}" for value in grid)
        echo(f"best value at the {' and '.join(new)} edge for some system: grid extended to {values} for all")
    found = TunedVariant(rules.key, rules.metric, [*rules.seeds], [*rules.overrides], grid, entries)
    return found, trials


def _towards(found: TunedVariant, *, baseline: str) -> TunedVariant:
    """What was found with each system's choice moved towards the baseline's, as far as its trials do not speak against it."""
    base = found.systems.get(baseline)
    if base is None or base.chosen is None:
        return found
    systems = dict(found.systems)
    for name, entry in found.systems.items():
        if name != baseline and entry.chosen is not None:
            chosen = towards_baseline(entry.values, best=entry.chosen, baseline=base.chosen, metric=found.metric)
            systems[name] = replace(entry, chosen=chosen)
    return replace(found, systems=systems, baseline=baseline)


def _entry(
    system: str, trials: Sequence[PlannedRun], rules: Tuning, *, grid: Sequence[float], place: Path
) -> TunedSystem:
    """What the trials of one system say."""
    own = [trial for trial in trials if trial.system == system]
    short, values, means = rules.key.rsplit(".", 1)[-1], [], {}
    for value in grid:
        trials_of_value = [trial for trial in own if trial.setting == f"{short}{value:g}"]
        by_seed = {str(trial.seed): _metric(Run.open(place / trial.name), rules.metric) for trial in trials_of_value}
        known = [loss for loss in by_seed.values() if loss is not None]
        means[value] = sum(known) / len(known) if len(known) == len(by_seed) else None
        values.append(Tried(value, means[value], by_seed))
    chosen, edge = choose(means, metric=rules.metric)
    config = Run.open(place / own[0].name).config
    batch = config["train"]["batch"] * config["workers"]
    return TunedSystem(chosen, edge, batch, values, settings(config, rules))


def _metric(run: Run, metric: str) -> float | None:
    """The metric of a finished trial; None for one that diverged."""
    if not run.finished:
        return None
    metrics = run.results["metrics"]
    if metrics.get(metric) is None:
        raise UserError(f"{run.path}: no metric {metric!r} to tune by. It has: {', '.join(sorted(metrics))}.")
    return float(metrics[metric])


def _drop_weights(path: Path) -> None:
    """A trial is done when its numbers are known; its weights would only fill the disk."""
    run = Run(path)
    if run.status.get("state") in ("finished", "diverged"):
        for name in ("checkpoints", "predictions", "exchange"):
            shutil.rmtree(path / name, ignore_errors=True)


def _write(
    recipe: Recipe,
    found: TunedVariant,
    trials: Sequence[PlannedRun],
    *,
    scale: str,
    variant: str,
    folder: Path,
    place: Path,
) -> None:
    """Replace the records of this scale and variant, and its part of tuning.json."""
    records = [trial_of(recipe.name, trial, run=Run.open(place / trial.name), key=found.key) for trial in trials]
    update_lines(
        folder / TRIALS_FILE,
        Trial,
        write=records,
        remove=lambda trial: (trial.scale, trial.variant) == (scale, variant),
    )
    with alone(folder):  # two processes may tune two variants
        tuning = read_tuning(folder / FILE) or TuningFile(recipe.name)
        tuning.scales.setdefault(scale, {})[variant or ONE_VARIANT] = found
        tuning.write(folder / FILE)
