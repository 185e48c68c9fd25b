"""Records made from run folders: what of a finished run, or of a trial, is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from odist.claims.churn_of_models import Predicting, churn_against, churn_of_models
from odist.claims.planned import PlannedRun, next_seed
from odist.claims.recipe import System
from odist.claims.record import Record, Trial
from odist.config.identity import flatten
from odist.errors import UserError
from odist.files import finite
from odist.measure.churn import form_of, pair_metrics
from odist.run.folder import Run
from odist.run.predictions import LAST_WEIGHTS

LARGEST_NUMBER_OF_EVALUATIONS = 200  # rows of each group that are kept, evenly chosen, the last always
ENVIRONMENT = ("commit", "source_hash", "versions", "hardware", "data_fingerprint", "config_hash")
NOT_RECORDED = ("kind", "time")


def records_of(
    recipe: str,
    planned: Sequence[PlannedRun],
    *,
    runs: Sequence[Run],
    all_copies: bool = False,
    systems: Mapping[str, System] | None = None,
    released: str | None = None,
) -> list[Record]:
    """A record of each finished run, with its churn against each retrain of its system.

    planned: of one recipe and scale; runs: the finished run of each
    all_copies: also the churn between all models of two retrains, for recipes that measure churn
    systems: of the recipe; for those that read the runs of another (`runs_of`) there are records as well
    released: the one of them that the others are to replace; each record then has its churn against that one's run of the
        next seed
    Raises UserError when two runs that are compared predict different rows.
    """
    known = systems or {}
    former = {} if released is None else _former(known[released], planned, runs=runs)
    records = _records(recipe, planned, runs=runs, all_copies=all_copies, former=former)
    for system in known.values():
        own = [(plan, run) for plan, run in zip(planned, runs, strict=True) if plan.system == system.runs_of]
        if own:
            read, its = [replace(plan, system=system.name) for plan, _ in own], [run for _, run in own]
            records += _records(recipe, read, runs=its, all_copies=all_copies, system=system, former=former)
    return records


def _former(system: System, planned: Sequence[PlannedRun], *, runs: Sequence[Run]) -> dict[tuple[str, int], Predicting]:
    """(variant, seed) -> what the model predicts that a run of this seed is to replace."""
    trained = system.runs_of or system.name
    found = {
        (plan.variant, plan.seed): run
        for plan, run in zip(planned, runs, strict=True)
        if plan.system == trained and not plan.setting
    }
    former = {}
    for variant, seed in found:
        seeds = [number for where, number in found if where == variant]
        former[variant, seed] = Predicting.of(found[variant, next_seed(seed, seeds)], system)
    return former


def _records(
    recipe: str,
    planned: Sequence[PlannedRun],
    *,
    runs: Sequence[Run],
    all_copies: bool,
    former: Mapping[tuple[str, int], Predicting],
    system: System | None = None,
) -> list[Record]:
    """system: how it reads the runs; None: as they predict by themselves; former: what each replaces, by variant and seed"""
    last = system is not None and system.weights == "last"
    predictor = None if system is None else system.predictor
    predictions = [run.predictions(last_weights=last, predictor=predictor) for run in runs]
    records = []
    between_models = dict[tuple[int, int], dict[str, float | None] | None]()
    for index, (plan, run) in enumerate(zip(planned, runs, strict=True)):
        churn, of_models = {}, {}
        for other, rival in enumerate(planned):
            if other == index or not _retrains(plan, rival):
                continue
            if predictions[other].fingerprint != predictions[index].fingerprint:
                raise UserError(
                    f"{run.path} and {runs[other].path} are retrains of {plan.system} but predict different rows. "
                    "Delete the older of the two and start the recipe again."
                )
            # in the order of the seeds, so that both records of a pair hold the same numbers
            first, second = sorted((index, other))
            a, b = predictions[first], predictions[second]
            form = form_of(a.probabilities, a.targets)
            churn[str(rival.seed)] = pair_metrics(a.probabilities, b.probabilities, form=form)
            if all_copies and (first, second) not in between_models:
                between_models[first, second] = churn_of_models(runs[first], runs[second], last_weights=last)
            if between := between_models.get((first, second)):
                of_models[str(rival.seed)] = between
        record = _record(recipe, plan, run=run, churn=churn, rows=predictions[index].fingerprint)
        record = record if system is None else read_otherwise(record, system)
        replaced = former.get((plan.variant, plan.seed))
        against = {} if replaced is None else churn_against(Predicting.of(run, system), replaced)
        records.append(replace(record, churn_of_models=finite(of_models), churn_against=finite(against)))
    return records


def _retrains(plan: PlannedRun, other: PlannedRun) -> bool:
    """Whether two runs differ in their seed alone."""
    return (plan.variant, plan.system, plan.setting) == (other.variant, other.system, other.setting)


def read_otherwise(record: Record, system: System) -> Record:
    """The record as a system reads it that has the runs of another: by other weights, or another of its groups'
    predictions.

    Each member of an ensemble by itself costs what one model costs.
    """
    results = dict(record.results)
    evaluations = record.evaluations
    of_ensemble = results["predictor"] == "mean"
    mean = results["metrics"] if of_ensemble else results.get("mean_of_groups", {})
    if of_ensemble and "last_weights" in results:
        mean = {**mean, "last_weights": results["last_weights"]}
    groups = results["groups"]
    if system.weights == "last":
        mean, groups = _by_last_weights(mean), [group and _by_last_weights(group) for group in groups]
        evaluations = [_by_last_weights(row) for row in evaluations]
    predictor = system.predictor or ("mean" if of_ensemble else "copies")
    if predictor == "copies" and of_ensemble:
        each = {key: results[key] / len(groups) for key in ("flops", "seconds") if results.get(key) is not None}
        results |= {**each, "total_examples": results["examples_per_model"]}
    metrics = mean if predictor == "mean" else groups[0]
    read = {"predictor": "mean" if predictor == "mean" else "group-0", "metrics": metrics, "groups": groups}
    return replace(record, results={**results, **read}, evaluations=evaluations)


def _by_last_weights(content: Mapping[str, Any]) -> dict[str, Any]:
    """Results or an evaluation of an average, with those of the last weights in their place."""
    kept = {
        key: value for key, value in content.items() if key != "average_hash" and not key.startswith("last_weights")
    }
    rows = {key.removeprefix(LAST_WEIGHTS): value for key, value in content.items() if key.startswith(LAST_WEIGHTS)}
    return {**kept, **rows, **content.get("last_weights", {})}


def _record(recipe: str, plan: PlannedRun, *, run: Run, churn: dict[str, dict[str, float | None]], rows: str) -> Record:
    config = _without_places(run.config)
    return Record(
        **_line(recipe, plan, run=run),
        config=finite(config),
        results=finite(run.results),
        evaluations=finite(_evaluations(run)),
        churn=finite(churn),
        predicted_rows=rows,
        setting=plan.setting,
    )


def trial_of(recipe: str, plan: PlannedRun, *, run: Run, key: str) -> Trial:
    """The record of one trial of a tuning, of a run that diverged too. key: the setting that is tuned"""
    config = dict(flatten(_without_places(run.config)))
    return Trial(
        **_line(recipe, plan, run=run),
        key=key,
        value=config.get(key),
        config=finite(config),
        state=run.status.get("state"),
        metrics=finite(run.results["metrics"]) if run.finished else None,
    )


def _line(recipe: str, plan: PlannedRun, *, run: Run) -> dict[str, Any]:
    """What records and trials have in common: the fields of `odist.claims.record.Line`."""
    env = finite({key: run.env.get(key) for key in ENVIRONMENT})
    own = {"system": plan.system, "seed": plan.seed, "variant": plan.variant}
    return {**own, "recipe": recipe, "scale": run.config.get("scale", ""), "env": env}


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without folders: the fingerprint names the data, a teacher is named by its run."""
    kept = {key: value for key, value in config.items() if key != "run"}
    kept["data"] = {**kept.get("data", {}), "path": None}
    if teachers := kept.get("algorithm", {}).get("teachers"):
        kept["algorithm"] = {**kept["algorithm"], "teachers": [Path(teacher).name for teacher in teachers]}
    if first := kept.get("train", {}).get("init_from"):
        kept["train"] = {**kept["train"], "init_from": Path(first).name}
    return kept


def _evaluations(run: Run) -> list[dict[str, Any]]:
    """Evaluation rows without dates, at most LARGEST_NUMBER_OF_EVALUATIONS of each group."""
    frame = run.metrics(kind="evaluate")
    if frame.empty:
        return []
    frame = frame.drop_duplicates(["group", "step"], keep="last") if "group" in frame else frame
    kept: list[dict[str, Any]] = []
    groups = frame.groupby("group", sort=True) if "group" in frame else [(0, frame)]
    for _, rows in groups:
        stride = math.ceil(len(rows) / LARGEST_NUMBER_OF_EVALUATIONS)
        chosen = rows.iloc[::-1].iloc[::stride].iloc[::-1]
        for row in chosen.to_dict("records"):
            kept.append({str(key): _plain(value) for key, value in row.items() if key not in NOT_RECORDED})
    return kept


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value
