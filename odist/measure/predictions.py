"""Retrains of one system, read from run folders and prediction files, checked and compared.

Refuses what cannot be retrains of one system (other rows, the same run twice) and notes what makes the comparison
doubtful (settings that differ, equal seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from odist.config.systems import system_differences
from odist.errors import UserError
from odist.measure.churn import ChurnResult, Form, churn, form_of
from odist.measure.prediction_files import ROW, SUFFIXES, Retrain, data_fingerprint, is_url, listed, read_predictions
from odist.measure.row_matching import match_rows
from odist.measure.slices import built_in_slices
from odist.run.folder import Run


def load_predictions(
    path: Path | str, *, split: str = "validation", column: Sequence[str] = (), target: str | None = None
) -> Retrain:
    """Read one retrain from a run folder, or from a CSV or Parquet file of probabilities or the URL of one.

    split: the part of a run folder's data
    column, target: columns of a file; see `odist.measure.prediction_files.read_predictions`
    """
    if is_url(path) or Path(path).is_file():
        return read_predictions(path, column=column, target=target)
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path}: no such file.")
    run = Run.open(path)
    stored = run.predictions(split)
    return Retrain(
        path=path,
        name=run.name,
        probabilities=stored.probabilities,
        form=form_of(stored.probabilities, stored.targets),
        targets=stored.targets,
        columns={ROW: np.arange(len(stored.probabilities))},
        fingerprint=data_fingerprint(split, stored.fingerprint),
        config=run.config,
    )


def compare_retrains(
    paths: Sequence[Path | str],
    *,
    split: str = "validation",
    column: Sequence[str] = (),
    target: str | None = None,
    key: str | None = None,
    by_order: bool = False,
    slices: Sequence[str] = ("decile", "label", "position"),
    threshold: float = 0.5,
    confidence: float = 0.95,
) -> ChurnResult:
    """Churn between the retrains at `paths` (run folders or files); see `churn` and `load_predictions`.

    key, by_order: how the same rows are found; see `odist.measure.row_matching.match_rows`
    slices: names among decile, label and position, or any further column of the first file
    Raises UserError for fewer than two retrains, the same one twice, other rows, or an unknown slice.
    """
    resolved = [str(path) if is_url(path) else str(Path(path).resolve()) for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"{paths[index]} is given twice. A run compared with itself has no churn; name each once.")
    if len(paths) < 2:
        raise UserError(
            f"churn compares at least two retrains of one system, got {len(paths)}. "
            "Train another with the same settings and another seed."
        )
    retrains = [load_predictions(path, split=split, column=column, target=target) for path in paths]
    for retrain in retrains:
        if retrain.form is not retrains[0].form:
            raise UserError(
                f"{retrain.path} holds the {retrain.form.value}, {retrains[0].path} the "
                f"{retrains[0].form.value}. Retrains are compared in one form."
            )
    retrains, notes = match_rows(retrains, key=key, by_order=by_order)
    targets = common_targets(retrains)
    if threshold != 0.5 and retrains[0].form is not Form.binary:
        notes.append("The threshold is not used: these are not probabilities of two classes.")
    result = churn(
        [retrain.probabilities for retrain in retrains],
        targets=targets,
        form=retrains[0].form,
        threshold=threshold,
        slices=chosen_slices(retrains, targets, slices),
        confidence=confidence,
        names=_distinct_names(retrains),
    )
    notes += _missing(retrains)
    notes += doubts([retrain for retrain in retrains if retrain.config])
    return replace(result, notes=[*result.notes, *notes])


def _missing(retrains: Sequence[Retrain]) -> list[str]:
    """Which runs have lost groups, and who predicts for them."""
    words = [Run(Path(retrain.path)).missing_words() for retrain in retrains if retrain.config]
    return [sentence for sentence in words if sentence]


def common_targets(retrains: list[Retrain]) -> np.ndarray | None:
    """The labels, checked to be equal wherever they are known: rows in another order would show here."""
    known = [retrain for retrain in retrains if retrain.targets is not None]
    for retrain in known[1:]:
        differ = np.flatnonzero(np.asarray(retrain.targets) != np.asarray(known[0].targets))
        if len(differ):
            hint = "Evaluate both on the same rows, with the same train.evaluate_batch."
            if not retrain.config or not known[0].config:
                hint = "Name a column that identifies the rows with --key."
            raise UserError(
                f"{retrain.path} and {known[0].path} disagree on the label of {len(differ)} rows, first of "
                f"row {int(differ[0])}: these are not the same rows in the same order. {hint}"
            )
    return known[0].targets if known else None


def chosen_slices(retrains: list[Retrain], targets: np.ndarray | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    built_in = built_in_slices([retrain.probabilities for retrain in retrains], targets)
    chosen = {}
    for name in names:
        if name in built_in:
            chosen[name] = built_in[name]
        elif name in retrains[0].columns:
            chosen[name] = retrains[0].columns[name]
        elif name != "label":  # asked for by default; without targets it is left out
            raise UserError(f"no slice {name!r}. Choose among: {listed([*built_in, *retrains[0].columns])}.")
    return chosen


def _distinct_names(retrains: list[Retrain]) -> list[str]:
    names = [retrain.name for retrain in retrains]
    return names if len(set(names)) == len(names) else [str(retrain.path) for retrain in retrains]


def doubts(retrains: list[Retrain]) -> list[str]:
    """What speaks against reading these runs as retrains of one system, one sentence each."""
    configs = [retrain.config or {} for retrain in retrains]
    if len(configs) < 2:
        return []
    notes = []
    by_seed: dict[Any, list[str]] = {}
    for retrain, config in zip(retrains, configs, strict=True):
        by_seed.setdefault(config.get("seed"), []).append(retrain.name)
    for seed, names in by_seed.items():
        if len(names) > 1:
            notes.append(
                f"Same seed ({seed}): {', '.join(names)}. Training the same seed again is not a retrain: "
                "its churn is 0 by construction."
            )
    differing = system_differences(configs)
    if differing.pop("data.seed", None):
        notes.append("data.seed differs, so this churn includes the effect of other training data.")
    if differing:
        shown = [f"{key} ({', '.join(dict.fromkeys(map(str, values)))})" for key, values in list(differing.items())[:5]]
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        notes.append(
            "The runs differ in more than their seed, so they are not retrains of one system: "
            f"{'; '.join(shown)}{more}."
        )
    return notes
