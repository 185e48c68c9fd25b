"""References of a recipe: records of other methods on the same rows, and their part of the report page.

    references/VARIANT-NAME.json   the reference's settings, metrics and what it was compared with

odist.claims.logistic fits them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odist.claims.claim import FAILS, HOLDS, OPEN, Reference
from odist.claims.recipe import Recipe
from odist.claims.record import Record
from odist.claims.table import ABSENT, estimate
from odist.config.typed import Reader
from odist.errors import UserError
from odist.files import write_atomically
from odist.measure.intervals import Interval, mean_interval, within_range
from odist.run.damage import read_json

FORMAT = "odist-reference-1"
FOLDER = "references"
ENVIRONMENT = ("commit", "source_hash", "versions", "hardware")


@dataclass(frozen=True)
class Difference:
    """Log loss of a prediction less the reference's on the same rows, in nats. interval: over rows"""

    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Against:
    """What a reference was compared with: each retrain of a system, and the mean of their losses."""

    system: str
    by_seed: dict[str, Difference]
    mean: Difference


@dataclass(frozen=True)
class FittedReference:
    """The record of a fitted reference.

    options: chosen; trials: all that were tried, each with its log loss; at_edge: options still at an edge of what was
        tried
    metrics: with intervals over rows; data_fingerprint: of the rows; env: ENVIRONMENT
    """

    recipe: str
    variant: str
    name: str
    options: dict[str, Any]
    trials: list[dict[str, Any]]
    at_edge: list[str]
    metrics: dict[str, Any]
    data_fingerprint: str
    against: Against
    env: dict[str, Any]
    format: str = FORMAT

    def write(self, folder: Path) -> Path:
        """Write the record into a report's folder; the file."""
        path = _path(folder, variant=self.variant, name=self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n")
        return path


def read_reference(folder: Path, *, variant: str, name: str) -> FittedReference | None:
    """The record of a reference, None where there is none. Raises UserError for a file that is not one."""
    path = _path(folder, variant=variant, name=name)
    cure = "Delete it and start the recipe again."
    if not path.is_file():
        return None
    content = read_json(path, cure=cure)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: not a reference of this version ({FORMAT}). {cure}")
    try:
        reference: FittedReference = Reader().read(FittedReference, content)
    except UserError as error:
        raise UserError(f"{path}: {error} {cure}") from error
    return reference


def _path(folder: Path, *, variant: str, name: str) -> Path:
    return folder / FOLDER / (f"{variant}-{name}.json" if variant else f"{name}.json")


def reference_row(recipe: Recipe, reference: Reference, record: FittedReference) -> dict[str, str]:
    """The reference's row of the main table: metrics with intervals over rows."""
    row = {"label": f"{reference.label} (interval over rows)", "seeds": ABSENT}
    for name in recipe.metrics:
        if record.metrics.get(name) is not None:
            interval = within_range(name, record.metrics.get(f"{name}_interval"))
            row[name] = estimate(record.metrics[name], interval)
    return row


def check_reference(
    reference: Reference, record: FittedReference, *, values: Mapping[int, float]
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Whether the system's mean is at or below the reference, and every single run within the margin.

    values: seed -> the metric of each retrain of the system
    returns: (verdict, numbers) of both; the first needs the interval over retrains wholly on one side
    """
    of_reference = float(record.metrics[reference.metric])
    differences = [value - of_reference for value in values.values()]
    mean, interval = float(np.mean(differences)), mean_interval(differences)
    if interval is None:
        verdict = OPEN
    else:
        verdict = HOLDS if interval[1] <= 0 else FAILS if interval[0] > 0 else OPEN
    rows = record.against.mean
    numbers = (
        f"mean of {len(differences)} retrains {'at or below' if mean <= 0 else 'above'} it: "
        f"difference {estimate(mean, interval, sign=True)} over retrains, "
        f"{estimate(rows.difference, rows.interval, sign=True)} over rows"
    )
    largest = max(differences)
    return (verdict, numbers), (HOLDS if largest <= reference.margin else FAILS, f"largest difference {largest:+.5f}")


def reference_parts(
    recipe: Recipe,
    reference: Reference,
    record: FittedReference | None,
    *,
    values: Mapping[int, float],
    metric_name: str,
) -> list[str]:
    """Lines of the page that hold a system against a reference."""
    if record is None:
        return [f"Reference {reference.label}: not fitted.\n"]
    label, options = recipe.systems[reference.system].label, record.options
    lines = [
        f"Reference: {reference.label}, the same rows and columns, `lr` {options['lr']:g}, `l2` {options['l2']:g} and "
        f"{options['passes']} passes chosen on the tuning split ({len(record.trials)} settings"
        + (f"; at the edge of what was tried: {', '.join(record.at_edge)}" if record.at_edge else "")
        + ")."
    ]
    if values:
        mean, single = check_reference(reference, record, values=values)
        lines.append(f"- **{mean[0]}**: The mean {metric_name} of {label} is at or below the reference's ({mean[1]}).")
        lines.append(
            f"- **{single[0]}**: Every retrain of {label} is within {reference.margin:g} of it or below ({single[1]})."
        )
    return ["\n".join([lines[0], "", *lines[1:]]) + "\n"]


def values_of(records: Sequence[Record], reference: Reference) -> dict[int, float]:
    """The metric of each retrain of the reference's system, by seed."""
    own = sorted((record for record in records if record.system == reference.system), key=lambda record: record.seed)
    return {record.seed: float(record.metrics[reference.metric]) for record in own}
