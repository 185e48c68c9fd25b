"""What is kept of a recipe's finished runs: their records, the references fitted beside them, and the recipe itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from odist.claims.claim import Reference
from odist.claims.jobs import Echo
from odist.claims.page import PAPER_FILE
from odist.claims.planned import PlannedRun
from odist.claims.recipe import Recipe
from odist.claims.recipe_file import paper_file, parse_recipe
from odist.claims.record import RUNS_FILE, Record, update_lines
from odist.errors import UserError
from odist.files import write_atomically
from odist.run.folder import Run

JUDGED_LATER = "judged_later: true # its claims or targets are not those that its runs were made with\n"


def record_runs(recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path], folder: Path, home: Path) -> None:
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


def record_references(
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


def reword(recipe: Recipe, folder: Path, *, scale: str, echo: Echo) -> None:
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
