"""Reproduce a recipe: train the runs it lacks, record the finished ones, write the report.

Every run is an `odist train` process of its own (odist.claims.jobs), at the settings that `odist tune` chose for its
system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from odist.claims.final_plan import FinalPlan, final_plan
from odist.claims.jobs import Echo, train_all, train_command
from odist.claims.judged import home_of, read_judged
from odist.claims.page import build_report
from odist.claims.plan import plan_runs
from odist.claims.planned import PlannedRun
from odist.claims.recipe import Recipe
from odist.claims.record import RUNS_FILE, Record, read_lines
from odist.claims.recording import record_references, record_runs, reword
from odist.claims.tuning import FILE as TUNING_FILE
from odist.claims.tuning import chosen_values, find_tuning, read_tuning
from odist.files import write_atomically
from odist.run.folder import Run


@dataclass(frozen=True)
class ReproduceResult:
    """What `reproduce` did.

    folder: of the report; files: those written
    commands: `odist train` command lines of all runs of the recipe
    left_out: variants not run, each with the variable it needs
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def reproduce(
    name_or_path: str | Path,
    *,
    scale: str | None = None,
    output: Path = Path("reports"),
    runs_dir: Path = Path("runs"),
    jobs: int | None = None,
    data_path: Path | None = None,
    variants: Sequence[str] = (),
    dry_run: bool = False,
    only_report: bool = False,
    keep_checkpoints: bool = False,
    echo: Echo = print,
) -> ReproduceResult:
    """Train what a recipe lacks and write its report to `output`/NAME.

    name_or_path: a recipe's name or file
    scale: one that the recipe lists, by default the recipe's own; another scale than that writes to
        `output`/NAME-SCALE, so that a quick trial never replaces the report
    runs_dir: run folders go to `runs_dir`/NAME/SCALE/
    jobs: runs trained at a time, by default one a core
    data_path: prepared data for the variants that need it; without it they are left out
    variants: those to train, empty for all; records and tuning of the others stay as they are
    dry_run: print the commands and do nothing
    only_report: make the report from the records that exist, train nothing; a recipe that trains the same runs as the
        one that they were made with lends the report its words and claims
    keep_checkpoints: also those of finished runs that teach no other; a record needs their predictions only, and a run of
        Criteo's embeddings leaves hundreds of megabytes
    Systems are trained at the settings in `output`/NAME/tuning.json, or else in the one that comes with the project;
    without any, at the preset's, which the report says.
    Raises UserError for an unknown recipe, scale or variant, OdistError naming the runs that failed, Interrupted.
    """
    planned = plan_runs(name_or_path, scale=scale, data_path=data_path, variants=variants)
    recipe, scale, plan = planned.recipe, planned.scale, planned.runs
    folder = output / (recipe.name if scale == recipe.scale else f"{recipe.name}-{scale}")
    home = home_of(recipe, folder)
    tuning_file = find_tuning(recipe, output=output)
    tuning = None if tuning_file is None else read_tuning(tuning_file)
    chosen = chosen_values(recipe, tuning, scale=scale)
    place = runs_dir / recipe.home / scale
    final = final_plan(recipe, plan, chosen=chosen, place=place, scale=scale)
    commands = [train_command(run, path) for path, run in final.trained.items()]
    if not only_report:
        planned.tell_left_out(echo)
    for variant in dict.fromkeys(run.variant for run in plan):
        if recipe.tuning is not None and (tuning is None or tuning.found_at(scale=scale, variant=variant) is None):
            which, tune_it = variant or recipe.name, f"`odist tune {recipe.home} --scale {scale}` tunes it"
            echo(f"untuned: {which} at scale {scale} uses the preset's {recipe.tuning.key} for every system; {tune_it}")
    if dry_run:
        for command in commands:
            echo(" ".join(command))
        return ReproduceResult(folder, commands=commands, left_out=planned.left_out)
    if only_report:
        reword(recipe, folder, scale=scale, echo=echo)
    else:
        read_lines(home / RUNS_FILE, Record)  # a file that cannot be added to is refused before hours of training
        done: set[Path] = set()
        while True:
            _train(recipe, final, done=done, jobs=jobs or os.cpu_count() or 1, keep=keep_checkpoints, echo=echo)
            record_runs(
                recipe,
                [*final.runs, *final.beside],
                paths=[*final.paths, *final.paths_beside],
                folder=folder,
                home=home,
            )
            added = _added_runs(recipe, plan, folder=folder, echo=echo)
            if not added:
                break
            plan = [*plan, *added]
            final = final_plan(recipe, plan, chosen=chosen, place=place, scale=scale)
        commands = [train_command(run, path) for path, run in final.trained.items()]
        record_references(recipe, final.runs, paths=final.paths, folder=folder, echo=echo)
        if tuning_file is not None and tuning_file.resolve() != (home / TUNING_FILE).resolve():
            write_atomically(home / TUNING_FILE, tuning_file.read_text(encoding="utf-8"))
    files = build_report(folder, name=recipe.name, echo=echo)
    echo(f"report: {folder / recipe.name}.md")
    return ReproduceResult(folder, files=files, commands=commands, left_out=planned.left_out)


def _train(recipe: Recipe, final: FinalPlan, *, done: set[Path], jobs: int, keep: bool, echo: Echo) -> None:
    """Train what is not `done` yet, and add it to that; students after their teachers.

    keep: the checkpoints of runs on which no other is built; a page on the runs of another recipe keeps all
    """
    needed = {name for system in recipe.systems.values() for name in system.built_on}
    keep = keep or recipe.runs_of is not None  # the students of another page may need them
    for phase in _phases(recipe, final.runs):
        own = {path: run for path, run in final.trained.items() if run.system in phase and path not in done}
        if own:
            lasting = {path for path, run in own.items() if run.system in needed}

            def ended(path: Path, lasting: set[Path] = lasting) -> None:
                if not keep and path not in lasting:
                    Run(path).drop_checkpoints()

            train_all(list(own.values()), paths=list(own), jobs=jobs, echo=echo, ended=ended)
        done |= own.keys()


def _phases(recipe: Recipe, runs: Sequence[PlannedRun]) -> list[set[str]]:
    """Systems in the order in which they can be trained: those that need no other first."""
    names = {run.system for run in runs}
    later = {name for name in names if recipe.systems[name].built_on}
    return [phase for phase in (names - later, later) if phase]


def _added_runs(recipe: Recipe, plan: Sequence[PlannedRun], *, folder: Path, echo: Echo) -> list[PlannedRun]:
    """The runs of one more seed for every variant in which the interval that the recipe names is still too wide."""
    rules = recipe.seeds_until
    if rules is None:
        return []
    verdicts = read_judged(folder, name=recipe.name, echo=echo).verdicts
    tuned = {*(recipe.tuning.seeds if recipe.tuning else ())}
    added: list[PlannedRun] = []
    for variant in dict.fromkeys(run.variant for run in plan):
        seeds = sorted({run.seed for run in plan if run.variant == variant})
        intervals = [verdict.interval for verdict in verdicts[variant] if verdict.claim.id == rules.claim]
        if not intervals or len(seeds) >= rules.at_most:
            continue
        width = None if intervals[0] is None else intervals[0][1] - intervals[0][0]
        if width is not None and width <= rules.width:
            continue
        seed = next(number for number in range(seeds[-1] + 1, seeds[-1] + 2 + len(tuned)) if number not in tuned)
        found = "has none yet" if width is None else f"is {width:.3g} wide, more than {rules.width:g}"
        echo(f"{variant or recipe.name}: the interval of {rules.claim} {found}: seed {seed} is added")
        added += [replace(run, seed=seed) for run in plan if (run.variant, run.seed) == (variant, seeds[-1])]
    return added
