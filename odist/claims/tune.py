"""Tune a recipe: one setting of every system, on rows and seeds that are not reported.

The rules are the same for all systems: a grid by factors of two, as many trials for each, the best value inside
the grid. Where the best value of some system lies at an edge, that edge is extended for every system of the
variant, a limited number of times. Every trial is an `odist train` process (odist.claims.jobs), but for those that
tuning.jsonl has at the same settings: more seeds, or a wider grid, cost their own trials only. What was found is
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
    AVERAGE_EVERY,
    FILE,
    ONE_VARIANT,
    Tried,
    TunedSystem,
    TunedVariant,
    TuningFile,
    averages_weights,
    choose,
    read_tuning,
    settings,
    towards_baseline,
)
from odist.config.composed import composed
from odist.config.identity import config_hash
from odist.config.read import load
from odist.data.store import read_record
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
    again: bool = False,
    dry_run: bool = False,
    echo: Echo = print,
) -> TuneResult:
    """Run the trials of a recipe's `tuning` section and write `output`/NAME/tuning.json.

    Arguments as of `odist.claims.reproduce.reproduce`. One small record of every trial goes to
    `output`/NAME/tuning.jsonl; a trial's folder below `runs_dir`/NAME/SCALE/tuning/ keeps its numbers, not its
    weights. Variants and scales that are not tuned this time keep what was found before.

    again: take no trial from tuning.jsonl; finished run folders are used even so
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
        for trial in _planned(systems, rules, rules.grid):
            result.commands.append(train_command(trial, place / trial.name))
            echo(" ".join(result.commands[-1]))
        return result
    read_tuning(folder / FILE)  # a file that cannot be added to is refused before hours of trials, not after
    read_lines(folder / TRIALS_FILE, Trial)
    for variant in dict.fromkeys(run.variant for run in systems):
        own = [run for run in systems if run.variant == variant]
        of_variant = replace(rules, seeds=recipe.variants[variant].tuning_seeds or rules.seeds)
        trials = _Trials(
            recipe, scale=scale, folder=folder, place=place, jobs=jobs or os.cpu_count() or 1, again=again, echo=echo
        )
        found = _towards(_tune_variant(own, of_variant, trials=trials, echo=echo), baseline=recipe.reference)
        _write(recipe, found, list(trials.ended.values()), scale=scale, variant=variant, folder=folder)
        result.commands.extend(trials.commands)
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


def _planned(systems: Sequence[PlannedRun], rules: Tuning, grid: Sequence[float]) -> list[PlannedRun]:
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


class _Trials:
    """The trials of a variant: taken from the records of an earlier tuning, or trained and recorded as they end.

    ended: name of the planned run -> its trial; commands: of all of them
    """

    def __init__(
        self, recipe: Recipe, *, scale: str, folder: Path, place: Path, jobs: int, again: bool, echo: Echo
    ) -> None:
        """folder: of the report; place: of the run folders; again: take none that is recorded"""
        self.recipe, self.scale, self.place, self.jobs, self.echo = recipe, scale, place, jobs, echo
        self.file = folder / TRIALS_FILE
        self.recorded = {} if again else {trial.name: trial for trial in read_lines(self.file, Trial).lines}
        self.ended: dict[str, Trial] = {}
        self.commands: list[list[str]] = []

    def end(self, plan: Sequence[PlannedRun], *, key: str) -> None:
        """See that these have ended. key: the setting that is tuned"""
        new = {self.place / trial.name: trial for trial in plan if trial.name not in self.ended}
        self.commands += [train_command(trial, path) for path, trial in new.items()]
        taken = {path: record for path, trial in new.items() if (record := self._record_of(trial)) is not None}
        if taken:
            self.echo(f"{len(taken)} of {len(new)} trials are in {TRIALS_FILE} already; --again takes none from there")
        self.ended |= {new[path].name: record for path, record in taken.items()}
        rest = {path: trial for path, trial in new.items() if path not in taken}

        def ended(path: Path) -> None:
            _drop_weights(path)
            trial = trial_of(self.recipe.name, rest[path], run=Run.open(path), key=key)
            self.ended[rest[path].name] = trial
            update_lines(self.file, Trial, write=[trial])

        train_all(list(rest.values()), paths=list(rest), jobs=self.jobs, echo=self.echo, may_diverge=True, ended=ended)

    def _record_of(self, trial: PlannedRun) -> Trial | None:
        """What an earlier tuning recorded of this trial, None if its settings or data were others."""
        record = self.recorded.get(f"{self.scale}-{trial.name}")
        content = None if record is None else composed(train_command(trial, self.place / trial.name)[2:])
        if record is None or content is None:
            return None
        if not averages_weights(record.config) and AVERAGE_EVERY in record.config:  # not read, so it may differ
            content["algorithm"]["average_every"] = record.config[AVERAGE_EVERY]
        config = load(content)
        store = None if config.data.path is None else read_record(Path(config.data.path))
        data = {} if store is None else {"data.path": store.get("fingerprint")}
        return record if record.env.get("config_hash") == config_hash(config, content=data) else None


def _tune_variant(systems: Sequence[PlannedRun], rules: Tuning, *, trials: _Trials, echo: Echo) -> TunedVariant:
    """Try the grid of one variant, extended where needed; what was found."""
    grid = list(rules.grid)
    added = {"low": 0, "high": 0}
    while True:
        plan = _planned(systems, rules, grid)
        trials.end(plan, key=rules.key)
        entries = {}
        for run in systems:
            own = [trials.ended[trial.name] for trial in plan if trial.system == run.system]
            entries[run.system] = _entry(own, rules, grid=grid)
        edges = {entry.at_edge for entry in entries.values()} - {None}
        new = [edge for edge in ("low", "high") if edge in edges and added[edge] < rules.extensions]
        if not new:
            return TunedVariant(rules.key, rules.metric, [*rules.seeds], [*rules.overrides], grid, entries)
        for edge in new:
            added[edge] += 1
            grid = [grid[0] / 2, *grid] if edge == "low" else [*grid, grid[-1] * 2]
        values = ", ".join(f"{value:g}" for value in grid)
        echo(f"best value at the {' and '.join(new)} edge for some system: grid extended to {values} for all")


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


def _entry(trials: Sequence[Trial], rules: Tuning, *, grid: Sequence[float]) -> TunedSystem:
    """What the trials of one system say."""
    values, means = [], {}
    for value in grid:
        by_seed = {
            str(trial.seed): _metric(trial, rules.metric) for trial in trials if f"{trial.value:g}" == f"{value:g}"
        }
        known = [loss for loss in by_seed.values() if loss is not None]
        means[value] = sum(known) / len(known) if len(known) == len(by_seed) else None
        values.append(Tried(value, means[value], by_seed))
    chosen, edge = choose(means, metric=rules.metric)
    config = trials[0].config
    return TunedSystem(chosen, edge, config["train.batch"] * config["workers"], values, settings(config, rules))


def _metric(trial: Trial, metric: str) -> float | None:
    """The metric of a finished trial; None for one that diverged."""
    if trial.metrics is None:
        return None
    if trial.metrics.get(metric) is None:
        raise UserError(f"{trial.name}: no metric {metric!r} to tune by. It has: {', '.join(sorted(trial.metrics))}.")
    return float(trial.metrics[metric])


def _drop_weights(path: Path) -> None:
    """A trial is done when its numbers are known; its weights would only fill the disk."""
    run = Run(path)
    if run.status.get("state") in ("finished", "diverged"):
        for name in ("checkpoints", "predictions", "exchange"):
            shutil.rmtree(path / name, ignore_errors=True)


def _write(
    recipe: Recipe, found: TunedVariant, trials: Sequence[Trial], *, scale: str, variant: str, folder: Path
) -> None:
    """Replace the records of this scale and variant, and its part of tuning.json."""
    update_lines(
        folder / TRIALS_FILE,
        Trial,
        write=trials,
        remove=lambda trial: (trial.scale, trial.variant) == (scale, variant),
    )
    with alone(folder):  # two processes may tune two variants
        tuning = read_tuning(folder / FILE) or TuningFile(recipe.name)
        tuning.scales.setdefault(scale, {})[variant or ONE_VARIANT] = found
        tuning.write(folder / FILE)
