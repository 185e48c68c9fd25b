"""The compact record of one finished run: all that a report is made of.

Small enough to be committed, free of paths and dates, and complete: a report can be made again, byte for
byte, when the run folders are long gone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odist.claims.recipe import PlannedRun
from odist.config.schema import flatten
from odist.errors import UserError
from odist.files import write_atomically
from odist.measure.churn import form_of, pair_metrics
from odist.run.folder import Run

FORMAT = "odist-record-1"
TRIAL_FORMAT = "odist-trial-1"
LARGEST_NUMBER_OF_EVALUATIONS = 200  # rows of each group that are kept, evenly chosen, the last always
ENVIRONMENT = ("commit", "source_hash", "versions", "hardware", "data_fingerprint", "config_hash")
NOT_RECORDED = ("kind", "time")


def write_records(recipe: str, planned: Sequence[PlannedRun], *, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write a record of each finished run into `folder`, with its churn against each retrain of its system.

    planned: of one recipe and scale; runs: the finished run of each
    UserError when two retrains of a system predict different rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predictions = [run.predictions() for run in runs]
    written = []
    for index, (plan, run) in enumerate(zip(planned, runs, strict=True)):
        churn = {}
        for other, rival in enumerate(planned):
            if other == index or (rival.variant, rival.system) != (plan.variant, plan.system):
                continue
            if predictions[other].fingerprint != predictions[index].fingerprint:
                raise UserError(f"{run.path} and {runs[other].path} are retrains of {plan.system} but predict different "
                                "rows. Delete the older of the two and start the recipe again.")  # fmt: skip
            # in the order of the seeds, so that both records of a pair hold the same numbers
            first, second = sorted((index, other))
            a, b = predictions[first], predictions[second]
            form = form_of(a.probabilities, a.targets)
            churn[str(rival.seed)] = pair_metrics(a.probabilities, b.probabilities, form=form)
        record = make_record(recipe, plan, run=run, churn=churn, rows=predictions[index].fingerprint)
        path = folder / f"{plan.name}.json"
        write_atomically(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
        written.append(path)
    return written


def make_record(recipe: str, plan: PlannedRun, *, run: Run, churn: dict[str, Any], rows: str) -> dict[str, Any]:
    """The record of one finished run. rows: fingerprint of the predicted rows."""
    config = _without_places(run.config)
    return _finite(
        {
            "format": FORMAT,
            "recipe": recipe,
            "variant": plan.variant,
            "system": plan.system,
            "seed": plan.seed,
            "scale": config.get("scale"),
            "config": config,
            "results": run.results,
            "evaluations": _evaluations(run),
            "churn": churn,
            "predicted_rows": rows,
            "env": {key: run.env.get(key) for key in ENVIRONMENT},
        }
    )


def make_trial(recipe: str, plan: PlannedRun, *, run: Run, key: str) -> dict[str, Any]:
    """The record of one trial of a tuning: settings, metrics (None when it diverged) and environment."""
    config = _without_places(run.config)
    flat = dict(flatten(config))
    return _finite(
        {
            "format": TRIAL_FORMAT,
            "recipe": recipe,
            "variant": plan.variant,
            "system": plan.system,
            "seed": plan.seed,
            "scale": config.get("scale"),
            "key": key,
            "value": flat.get(key),
            "config": flat,
            "state": run.status.get("state"),
            "metrics": run.results["metrics"] if run.finished else None,
            "env": {name: run.env.get(name) for name in ENVIRONMENT},
        }
    )


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without folders: the fingerprint names the data, a teacher is named by its run."""
    kept = {key: value for key, value in config.items() if key != "run"}
    kept["data"] = {**kept.get("data", {}), "path": None}
    if teachers := kept.get("algorithm", {}).get("teachers"):
        kept["algorithm"] = {**kept["algorithm"], "teachers": [Path(teacher).name for teacher in teachers]}
    return kept


def _evaluations(run: Run) -> list[dict[str, Any]]:
    """Evaluation rows without dates, at most so many of each group."""
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


def _finite(value: Any) -> Any:
    """The same with None for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records below `folder` by file name without suffix, in that order, each with its `sha256`."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        text = path.read_bytes()
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: no JSON ({error}). Delete it and start the recipe again.") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(f"{path}: not a record of this version ({FORMAT}). Delete it and start the recipe again.")
        records[path.stem] = {**record, "sha256": hashlib.sha256(text).hexdigest()}
    return records
