"""Retrains of one system, read from run folders and prediction files, checked and compared.

Refuses what is no pair of retrains (other rows, the same run twice) and notes what makes the comparison
doubtful (settings that differ, equal seeds). The numbers themselves are churn.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.churn import ChurnResult, built_in_slices, churn
from odist.errors import UserError
from odist.run import Run
from odist.systems import system_differences

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY_COLUMNS = ("prediction", "probability", "p", "score")
TARGET_COLUMNS = ("target", "label")


@dataclass(frozen=True)
class Retrain:
    """Predictions of one retrain.

    probabilities: [rows] or [rows, classes]
    targets: [rows], None where a file has none
    keys: [rows] values of the key column, None for row order
    columns: further columns of a file, for slices
    config, fingerprint: of a run folder, None for a file
    """

    path: Path
    name: str
    probabilities: np.ndarray
    targets: np.ndarray | None = None
    keys: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    fingerprint: str | None = None


def load_predictions(
    path: Path | str,
    *,
    split: str = "validation",
    column: str | None = None,
    target: str | None = None,
    key: str | None = None,
) -> Retrain:
    """Read one retrain from a run folder or from a CSV or Parquet file of probabilities.

    split: the part of a run folder's data
    column: probability column of a file; by default the first of prediction, probability, p, score
    target: label column; by default target or label where there is one
    key: column that names the rows; by default rows are matched by their order
    UserError for a missing file or column, and for keys that are missing or not unique.
    """
    path = Path(path)
    if path.is_file():
        return _from_file(path, column=column, target=target, key=key)
    if path.suffix.lower() in (".csv", ".parquet", ".pq"):
        raise UserError(f"{path}: no such file.")
    run = Run.open(path)
    loaded = run.predictions(split)
    return Retrain(
        path=path,
        name=run.name,
        probabilities=loaded.probabilities,
        targets=loaded.targets,
        config=run.config,
        fingerprint=loaded.fingerprint,
    )


def _read_frame(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        return pd.read_csv(path)
    except (ValueError, OSError) as error:  # parser errors and pyarrow's are ValueErrors
        raise UserError(f"{path}: cannot be read as a table of predictions ({error}). "
                        "Expected CSV with a header, or Parquet.") from error  # fmt: skip


def _from_file(path: Path, *, column: str | None, target: str | None, key: str | None) -> Retrain:
    frame = _read_frame(path)
    present = ", ".join(str(name) for name in frame.columns)

    def named(name: str, option: str) -> str:
        if name not in frame.columns:
            raise UserError(f"{path}: no column {name!r} ({option}). It has: {present}.")
        return name

    guesses = [name for name in PROBABILITY_COLUMNS if name in frame.columns]
    if column is None and not guesses:
        raise UserError(f"{path}: no column of probabilities among {', '.join(PROBABILITY_COLUMNS)}. "
                        f"It has: {present}. Name one with --column.")  # fmt: skip
    column = named(column, "--column") if column is not None else guesses[0]
    if target is None:
        target = next((name for name in TARGET_COLUMNS if name in frame.columns and name != column), None)
    else:
        named(target, "--target")
    keys = None
    if key is not None:
        keys = frame[named(key, "--key")].to_numpy()
        if frame[key].isna().any() or frame[key].duplicated().any():
            repeated = frame[key][frame[key].duplicated() | frame[key].isna()].iloc[0]
            raise UserError(f"{path}: the key {key!r} does not name each row once (for example {repeated!r}).")
    try:
        probabilities = frame[column].to_numpy(dtype=np.float64)
        targets = None if target is None else frame[target].to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: column {column!r} or {target!r} holds something other than numbers "
                        f"({error}).") from error  # fmt: skip
    if targets is not None and not np.isin(targets, (0.0, 1.0)).all():
        raise UserError(f"{path}: the target column {target!r} holds values other than 0 and 1.")
    others = {str(name): frame[name].to_numpy() for name in frame.columns if name not in (column, target, key)}
    return Retrain(path=path, name=path.name, probabilities=probabilities, targets=targets, keys=keys, columns=others)


def compare_retrains(
    paths: Sequence[Path | str],
    *,
    split: str = "validation",
    column: str | None = None,
    target: str | None = None,
    key: str | None = None,
    slices: Sequence[str] = ("decile", "label", "position"),
    threshold: float = 0.5,
    confidence: float = 0.95,
) -> ChurnResult:
    """Churn between the retrains at `paths` (run folders or files); see `churn` and `load_predictions`.

    slices: names among decile, label and position, or any further column of the first file
    UserError for fewer than two retrains, the same one twice, other rows, or an unknown slice.
    """
    resolved = [Path(path).resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"{paths[index]} is given twice. A run compared with itself has no churn; name each once.")
    if len(paths) < 2:
        raise UserError(f"churn compares at least two retrains of one system, got {len(paths)}. "
                        "Train another with the same settings and another seed.")  # fmt: skip
    retrains = [load_predictions(path, split=split, column=column, target=target, key=key) for path in paths]
    retrains = [_aligned(retrain, retrains[0]) for retrain in retrains]
    targets = _common_targets(retrains)
    result = churn(
        [retrain.probabilities for retrain in retrains],
        targets=targets,
        threshold=threshold,
        slices=_chosen_slices(retrains, targets, slices),
        confidence=confidence,
        names=_distinct_names(retrains),
    )
    return replace(result, notes=[*result.notes, *doubts([retrain for retrain in retrains if retrain.config])])


def _aligned(retrain: Retrain, first: Retrain) -> Retrain:
    """The retrain with its rows in the order of the first; UserError when they are not the same rows."""
    if None not in (retrain.fingerprint, first.fingerprint) and retrain.fingerprint != first.fingerprint:
        raise UserError(f"{retrain.path} and {first.path} predict different rows (data fingerprints "
                        f"{retrain.fingerprint} and {first.fingerprint}). Retrains are compared on one and the same "
                        "split: evaluate both on the same data with `odist eval`.")  # fmt: skip
    if len(retrain.probabilities) != len(first.probabilities):
        raise UserError(f"{retrain.path} has {len(retrain.probabilities)} rows, {first.path} "
                        f"{len(first.probabilities)}. Retrains are compared on the same rows.")  # fmt: skip
    if retrain.keys is None or first.keys is None or retrain is first:
        return retrain
    place = {value: index for index, value in enumerate(retrain.keys.tolist())}
    missing = [value for value in first.keys.tolist() if value not in place]
    if missing:
        raise UserError(f"{retrain.path} lacks {len(missing)} keys of {first.path}, for example {missing[0]!r}.")
    order = np.array([place[value] for value in first.keys.tolist()])
    return replace(
        retrain,
        probabilities=retrain.probabilities[order],
        targets=None if retrain.targets is None else retrain.targets[order],
        keys=first.keys,
    )


def _common_targets(retrains: list[Retrain]) -> np.ndarray | None:
    """The labels, checked to be equal wherever they are known: rows in another order would show here."""
    known = [retrain for retrain in retrains if retrain.targets is not None]
    for retrain in known[1:]:
        differ = np.flatnonzero(np.asarray(retrain.targets) != np.asarray(known[0].targets))
        if len(differ):
            raise UserError(f"{retrain.path} and {known[0].path} disagree on the label of {len(differ)} rows, the first "
                            f"row {int(differ[0])}: these are not the same rows in the same order. "
                            "Name a column that identifies the rows with --key.")  # fmt: skip
    return known[0].targets if known else None


def _chosen_slices(retrains: list[Retrain], targets: np.ndarray | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    built_in = built_in_slices([retrain.probabilities for retrain in retrains], targets)
    chosen = {}
    for name in names:
        if name in built_in:
            chosen[name] = built_in[name]
        elif name in retrains[0].columns:
            chosen[name] = retrains[0].columns[name]
        elif name != "label":  # asked for by default; without targets there is none
            choices = ", ".join([*built_in, *retrains[0].columns])
            raise UserError(f"no slice {name!r}. Choose among: {choices}.")
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
            notes.append(f"Same seed ({seed}): {', '.join(names)}. Training the same seed again is not a retrain: "
                         "its churn is 0 by construction.")  # fmt: skip
    differing = system_differences(configs)
    if differing.pop("data.seed", None):
        notes.append("data.seed differs, so this churn includes the effect of other training data.")
    if differing:
        shown = [f"{key} ({', '.join(dict.fromkeys(map(str, values)))})" for key, values in list(differing.items())[:5]]
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        notes.append(
            f"The runs differ in more than their seed, so they are not retrains of one system: {'; '.join(shown)}{more}."
        )
    return notes
