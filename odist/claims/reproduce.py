"""Reproduce a recipe: train the runs it lacks, record the finished ones, write the report.

Every run is an `odist train` process of its own (odist.claims.jobs), at the settings that `odist tune` chose for its
system.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from odist.claims.claim import Reference
from odist.claims.jobs import Echo, train_all, train_command
from odist.claims.judged import home_of, read_judged
from odist.claims.page import PAPER_FILE, build_report
from odist.claims.plan import plan_runs
from odist.claims.recipe import PlannedRun, Recipe, next_seed
from odist.claims.recipe_file import paper_file, parse_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines, update_lines
from odist.claims.tuning import FILE as TUNING_FILE
from odist.claims.tuning import chosen_values, read_tuning
from odist.errors import UserError
from odist.files import write_atomically
from odist.run.folder import Run

JUDGED_LATER = "judged_later: true # its claims or targets are not those that its runs were made with\n"


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
    work = _work(recipe, plan, chosen=chosen, place=place, scale=scale)
    commands = [train_command(run, path) for path, run in work.trained.items()]
    if not only_report:
        planned.tell_left_out(echo)
    for variant in dict.fromkeys(run.variant for run in plan):
        if recipe.tuning is not None and (tuning is None or tuning.found_at(scale=scale, variant=variant) is None):
            which, tune_it = variant or recipe.name, f"`odist tune {recipe.home} --scale {scale}` tunes it"
            echo(f"untuned: {which} at scale {scale} uses the preset's {recipe.tuning.key} for every system; {tune_it}")
    if dry_run:
        for command in commands:
            echo("odist " + " ".join(command[3:]))
        return ReproduceResult(folder, commands=commands, left_out=planned.left_out)
    if only_report:
        _reword(recipe, folder, scale=scale, echo=echo)
    else:
        read_lines(home / RUNS_FILE, Record)  # a file that cannot be added to is refused before hours of training
        done: set[Path] = set()
        while True:
            _train(recipe, work, done=done, jobs=jobs or os.cpu_count() or 1, keep=keep_checkpoints, echo=echo)
            _record(
                recipe, [*work.plan, *work.beside], paths=[*work.paths, *work.paths_beside], folder=folder, home=home
            )
            added = _added_runs(recipe, plan, folder=folder, echo=echo)
            if not added:
                break
            plan = [*plan, *added]
            work = _work(recipe, plan, chosen=chosen, place=place, scale=scale)
        commands = [train_command(run, path) for path, run in work.trained.items()]
        _record_references(recipe, work.plan, paths=work.paths, folder=folder, echo=echo)
        if tuning_file is not None and tuning_file.resolve() != (home / TUNING_FILE).resolve():
            write_atomically(home / TUNING_FILE, tuning_file.read_text(encoding="utf-8"))
    files = build_report(folder, name=recipe.name, echo=echo)
    echo(f"report: {folder / recipe.name}.md")
    return ReproduceResult(folder, files=files, commands=commands, left_out=planned.left_out)


@dataclass(frozen=True)
class _Work:
    """The runs of the tables and of the frontier beside them, at their settings, each with its folder."""

    plan: list[PlannedRun]
    paths: list[Path]
    beside: list[PlannedRun]
    paths_beside: list[Path]

    @property
    def trained(self) -> dict[Path, PlannedRun]:
        """Folder -> its run; one that the tables and the frontier share stands once."""
        tables = dict(zip(self.paths, self.plan, strict=True))
        return tables | {
            path: run for path, run in zip(self.paths_beside, self.beside, strict=True) if path not in tables
        }


def _work(
    recipe: Recipe,
    runs: Sequence[PlannedRun],
    *,
    chosen: Mapping[tuple[str, str], tuple[str, float]],
    place: Path,
    scale: str,
) -> _Work:
    plan = [use_tuned(run, chosen.get((run.variant, run.system))) for run in runs]
    paths = [place / _folder_name(run, chosen.get((run.variant, run.system))) for run in plan]
    plan = _built_on(recipe, plan, paths=paths)
    beside = recipe.frontier_runs(plan, scale=scale)
    return _Work(plan, paths, beside, [_path_beside(run, plan, paths, folder=place) for run in beside])


def _train(recipe: Recipe, work: _Work, *, done: set[Path], jobs: int, keep: bool, echo: Echo) -> None:
    """Train what is not `done` yet, and add it to that; students after their teachers.

    keep: the checkpoints of runs on which no other is built; a page on the runs of another recipe keeps all
    """
    needed = {name for system in recipe.systems.values() for name in system.built_on}
    keep = keep or recipe.runs_of is not None  # the students of another page may need them
    for phase in _phases(recipe, work.plan):
        own = {path: run for path, run in work.trained.items() if run.system in phase and path not in done}
        if own:
            lasting = {path for path, run in own.items() if run.system in needed}

            def ended(path: Path, lasting: set[Path] = lasting) -> None:
                if not keep and path not in lasting:
                    Run(path).drop_checkpoints()

            train_all(list(own.values()), paths=list(own), jobs=jobs, echo=echo, ended=ended)
        done |= own.keys()


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


def _reword(recipe: Recipe, folder: Path, *, scale: str, echo: Echo) -> None:
    """Write the recipe into a report's folder if it trains and tunes at `scale` as the one there, else say so.

    One that judges otherwise says so from then on, in the folder's recipe and on the page.
    """
    path = folder / "recipe.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") == recipe.text:
        return
    recorded = parse_recipe(path.read_text(encoding="utf-8"), name=recipe.name)
    here, there = recipe.at(scale), recorded.at(scale)
    if there.without_wording == here.without_wording and not recorded.judged_later:
        write_atomically(path, recipe.text)
    elif there.without_judgement == here.without_judgement:
        if path.read_text(encoding="utf-8") != recipe.text + JUDGED_LATER:
            echo("the recipe's claims or targets have changed since the records were made, which the page says")
        write_atomically(path, recipe.text + JUDGED_LATER)
    else:
        echo(
            "the recipe has changed since the records were made, in more than its wording and its claims; the report "
            f"is made by {path}"
        )


def find_tuning(recipe: Recipe, *, output: Path) -> Path | None:
    """The file of what was tuned: in `output`, else in ./reports, else beside the package; None if nowhere."""
    if recipe.tuning is None:
        return None
    folders = (output, Path("reports"), Path(__file__).resolve().parent.parent.parent / "reports")
    files = [folder / recipe.home / TUNING_FILE for folder in folders]
    return next((file for file in files if file.is_file()), None)


def _built_on(recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path]) -> list[PlannedRun]:
    """The plan with each run's finished teachers and first weights, of the seed after its own, as overrides."""
    where = {(run.variant, run.system, run.seed): path for run, path in zip(plan, paths, strict=True)}

    def path_of(run: PlannedRun, system: str) -> Path:
        seeds = [seed for variant, name, seed in where if (variant, name) == (run.variant, system)]
        return where[run.variant, system, next_seed(run.seed, seeds)]

    built = []
    for run in plan:
        system, lines = recipe.systems[run.system], []
        if system.teachers:
            lines.append(f"algorithm.teachers=[{path_of(run, system.teachers)}]")
        if system.starts_from:
            lines.append(f"train.init_from={path_of(run, system.starts_from)}")
        built.append(replace(run, overrides=run.override(lines)) if lines else run)
    return built


def _phases(recipe: Recipe, plan: Sequence[PlannedRun]) -> list[set[str]]:
    """Systems in the order in which they can be trained: those that need no other first."""
    names = {run.system for run in plan}
    later = {name for name in names if recipe.systems[name].built_on}
    return [phase for phase in (names - later, later) if phase]


def _path_beside(run: PlannedRun, plan: Sequence[PlannedRun], paths: Sequence[Path], *, folder: Path) -> Path:
    """The folder of a run of the frontier: that of the planned run which has its value anyway, or its own."""
    for planned, path in zip(plan, paths, strict=True):
        same = (planned.variant, planned.system, planned.seed) == (run.variant, run.system, run.seed)
        if same and sorted(planned.overrides) == sorted(run.overrides):
            return path
    return folder / run.name


def use_tuned(run: PlannedRun, chosen: tuple[str, float] | None) -> PlannedRun:
    """The run with its system's tuned key and value as its last override; unchanged if nothing was tuned."""
    return run if chosen is None else replace(run, overrides=run.override([f"{chosen[0]}={chosen[1]:g}"]))


def _folder_name(run: PlannedRun, chosen: tuple[str, float] | None) -> str:
    """A folder of its own for every tuned value, so that runs made before tuning stay where they are."""
    return run.name if chosen is None else f"{run.name}-{chosen[0].rsplit('.', 1)[-1]}{chosen[1]:g}"


def _record(recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path], folder: Path, home: Path) -> None:
    """Write the recipe into the report's folder and its records into `home`; records of no planned run are removed.

    Records of variants left out this time stay: they were made where their data lay.
    """
    from odist.claims.collect import records_of

    folder.mkdir(parents=True, exist_ok=True)
    runs = [Run.open(path) for path in paths]
    records = records_of(
        recipe.home,
        plan,
        runs=runs,
        all_copies=recipe.measures_churn,
        systems=recipe.systems,
        released=recipe.churn_against,
    )
    variants = {run.variant for run in plan}

    def outdated(record: Record) -> bool:
        return record.variant in variants and (not recipe.runs_of or record.system in recipe.systems)

    update_lines(home / RUNS_FILE, Record, write=records, remove=outdated)
    write_atomically(folder / "recipe.yaml", recipe.text)
    if recipe.paper_figure:
        write_atomically(folder / PAPER_FILE, paper_file(recipe.paper_figure))


def _record_references(
    recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path], folder: Path, echo: Echo
) -> None:
    """Fit and record every reference of the variants that were run."""
    for variant in dict.fromkeys(run.variant for run in plan):
        for reference in recipe.variants[variant].references.values():
            own = {
                run.seed: Run.open(path)
                for run, path in zip(plan, paths, strict=True)
                if (run.variant, run.system) == (variant, reference.system)
            }
            echo(f"fitting the reference: {reference.label}")
            _record_reference(recipe, reference, variant=variant, runs=own, folder=folder)


def _record_reference(
    recipe: Recipe, reference: Reference, *, variant: str, runs: Mapping[int, Run], folder: Path
) -> None:
    import numpy as np

    from odist.claims.logistic import logistic_reference, paired_differences
    from odist.claims.references import ENVIRONMENT, Against, FittedReference
    from odist.config.read import load
    from odist.run import provenance

    result = logistic_reference(load(next(iter(runs.values())).config).data)
    predictions = [run.predictions() for run in runs.values()]
    if any(not np.array_equal(p.targets, result.targets) for p in predictions):
        raise UserError(
            f"the runs of {reference.system} and the reference {reference.name} were evaluated on different "
            "rows. Delete the older runs and start the recipe again."
        )
    by_run, of_mean = paired_differences(
        [p.probabilities for p in predictions], result.probabilities, targets=result.targets
    )
    by_seed = {str(seed): own for seed, own in zip(runs, by_run, strict=True)}
    env = provenance.environment(config_hash="", data_fingerprint=result.fingerprint)
    FittedReference(
        recipe=recipe.name,
        variant=variant,
        name=reference.name,
        options=asdict(result.options),
        trials=[{**asdict(trial.options), "log_loss": trial.log_loss} for trial in result.trials],
        at_edge=list(result.at_edge),
        metrics=result.metrics,
        data_fingerprint=result.fingerprint,
        against=Against(reference.system, by_seed, of_mean),
        env={key: env.get(key) for key in ENVIRONMENT},
    ).write(folder)
