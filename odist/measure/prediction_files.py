"""Files of predictions, CSV or Parquet, as `odist churn` reads them; odist.measure.prediction_writer writes them.

One row a prediction. odist writes `row` (its number in the evaluation), `data_fingerprint` (which rows these are),
`label` where it is known, a key that the data have, and `prediction` (binary), `prediction_0` to `prediction_K-1` (K classes) or
`probability_of_label` (language models: of the correct piece).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.errors import UserError
from odist.measure.churn import Form
from odist.stores import check_url, open_store

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet", ".pq")
PARQUET_SUFFIXES = (".parquet", ".pq")
ROW = "row"
FINGERPRINT = "data_fingerprint"
OF_LABEL = "probability_of_label"
PROBABILITY_COLUMNS = ("prediction", "probability", "p", "score")  # also as prefixes of a column for every class
TARGET_COLUMNS = ("target", "label")
LARGEST_NUMBER_OF_NAMES = 8  # columns that a message shows
SUM_TOLERANCE = 0.01  # of the probabilities of all classes: some are stored with two digits or in bfloat16


@dataclass(frozen=True)
class Retrain:
    """Predictions of one retrain, from a file or a run folder.

    probabilities: float64 [rows] or [rows, classes], of what `form` says; targets: [rows], None where there are none
    columns: what else is known of each row, for keys and slices; each [rows]
    fingerprint: which rows these are, as `data_fingerprint` has it; None where a file does not say
    config: of a run folder, None for a file
    """

    path: Path | str
    name: str
    probabilities: np.ndarray
    form: Form
    targets: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    fingerprint: str | None = None
    config: dict[str, Any] | None = None

    def ordered(self, order: np.ndarray | slice) -> Retrain:
        """The same with row order[i] as row i."""
        return replace(
            self,
            probabilities=self.probabilities[order],
            targets=None if self.targets is None else self.targets[order],
            columns={name: values[order] for name, values in self.columns.items()},
        )


def data_fingerprint(split: str, fingerprint: str) -> str:
    """What the column `data_fingerprint` holds: which rows these are, short enough to stand in every row."""
    return f"{split}-{fingerprint[:12]}"


def read_predictions(path: Path | str, *, column: Sequence[str] = (), target: str | None = None) -> Retrain:
    """Read a file of predictions, written by odist or by other software.

    column: of the probabilities: one column, the common start of one numbered column per class, or a column for every
        class in the order of the classes; empty: by the names that odist and others use
    target: column of the labels; None: target or label, where there is one
    Raises UserError for a column that is missing and for contents that are not probabilities or labels.
    """
    frame = read_frame(path)
    return predictions_in(
        frame, path, layout=find_layout(list(map(str, frame.columns)), path, column=column, target=target)
    )


@dataclass(frozen=True)
class ColumnLayout:
    """Which columns of a file are what. names: of the probabilities, in the order of the classes"""

    names: list[str]
    form: Form
    target: str | None


def find_layout(columns: Sequence[str], path: Path | str, *, column: Sequence[str], target: str | None) -> ColumnLayout:
    """Find the probabilities and the labels among the columns of a file; arguments and errors as of `read_predictions`."""
    names, form = _probability_columns(columns, path, column=column)
    if target is not None and target not in columns:
        raise UserError(f"{path}: no column {target!r} (--target). It has: {listed(columns)}.")
    if target is None:
        target = next((name for name in TARGET_COLUMNS if name in columns and name not in names), None)
    return ColumnLayout(names, form, target)


def predictions_in(frame: pd.DataFrame, path: Path | str, *, layout: ColumnLayout, first: int = 0) -> Retrain:
    """The predictions in some rows of a file. first: number of the first of them, for messages"""
    names, form, target = layout.names, layout.form, layout.target
    try:
        probabilities = frame[names].to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: the probabilities ({listed(names)}) hold something other than numbers ({error})."
        ) from error
    if form is Form.classes:
        _check_sums(path, probabilities, first=first)
    else:
        probabilities = probabilities[:, 0]
    targets = None if target is None else _targets(frame[target], path, names=names, form=form, first=first)
    fingerprints = list(map(str, frame[FINGERPRINT].unique())) if FINGERPRINT in frame.columns else []
    if len(fingerprints) > 1:
        raise UserError(
            f"{path}: rows of several data sets ({FINGERPRINT}: {listed(fingerprints)}). Compare the rows of one."
        )
    others = {str(name): frame[name].to_numpy() for name in frame.columns if name not in (*names, target, FINGERPRINT)}
    fingerprint = fingerprints[0] if fingerprints else None
    return Retrain(path, str(path).rpartition("/")[2], probabilities, form, targets, others, fingerprint)


def num_rows(count: int) -> str:
    """A number of rows for a message."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def listed(names: Iterable[Any]) -> str:
    """Names for a message: of a numbered family the first and the last, and of too many the first few."""
    shown: list[str] = []
    for name in map(str, names):
        start = re.sub(r"\d+$", "", name)
        family = bool(shown) and start != name and re.fullmatch(re.escape(start) + r"\d+", shown[-1].split(" ... ")[-1])
        if family:
            shown[-1] = f"{shown[-1].split(' ... ')[0]} ... {name}"
        else:
            shown.append(name)
    more = len(shown) - LARGEST_NUMBER_OF_NAMES
    return ", ".join(shown[:LARGEST_NUMBER_OF_NAMES]) + (f" and {more} more" if more > 0 else "")


def read_frame(path: Path | str) -> pd.DataFrame:
    """Read a CSV or Parquet file, or a URL of one. UserError for what is neither."""
    import pandas as pd

    with reading(path), opened(path) as file:
        return pd.read_parquet(file) if str(path).lower().endswith(PARQUET_SUFFIXES) else pd.read_csv(file)


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what pyarrow and pandas raise for a file that is not sound into UserError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a table of predictions ({error}). Expected CSV with a header, or Parquet."
        ) from error


def is_url(path: Path | str) -> bool:
    """Whether a file lies in a store of another machine, such as s3://bucket/file."""
    return "://" in str(path)


def opened(path: Path | str) -> contextlib.AbstractContextManager[Any]:
    """A file or URL, open to be read. UserError for a URL that cannot be opened."""
    if not is_url(path):
        return open(path, "rb")
    check_url(str(path), key="file")
    fs, place = open_store(str(path))
    fs.invalidate_cache()
    return fs.open(place, "rb")


def _probability_columns(columns: Sequence[str], path: Path | str, *, column: Sequence[str]) -> tuple[list[str], Form]:
    """The columns of the probabilities, in the order of the classes where there are several."""
    has = f"It has: {listed(columns)}."
    missing = [name for name in column if name not in columns]
    if len(column) > 1:
        if missing:
            raise UserError(f"{path}: no column {missing[0]!r} (--column). {has}")
        return list(column), Form.classes
    if column and missing:
        family = _family(columns, column[0])
        if not family:
            raise UserError(
                f"{path}: no column {column[0]!r} (--column), nor {column[0]}_0, {column[0]}_1 and so on. {has}"
            )
        absent = [number for number in range(max(family)) if number not in family]
        if absent:
            raise UserError(
                f"{path}: columns {listed(family.values())}, but none for class {absent[0]}: classes are counted "
                "from 0. Name the column of every class with --column, in order."
            )
        return list(family.values()), Form.classes
    if column:
        return list(column), Form.label if column[0] == OF_LABEL else Form.binary
    if OF_LABEL in columns:
        return [OF_LABEL], Form.label
    for prefix in PROBABILITY_COLUMNS:
        family = _family(columns, prefix)
        if family and list(family) == list(range(len(family))):
            return list(family.values()), Form.classes
        if prefix in columns:
            return [prefix], Form.binary
    raise UserError(
        f"{path}: no column of probabilities among {', '.join((*PROBABILITY_COLUMNS, OF_LABEL))}, nor one for "
        f"every class (prediction_0, prediction_1 and so on). {has} Name it with --column, or the columns of "
        "the classes, or what these begin with."
    )


def _family(columns: Sequence[str], prefix: str) -> dict[int, str]:
    """Columns `prefix` + number, with or without an underscore between, by rising number; empty below two."""
    found = {}
    for name in columns:
        match = re.fullmatch(re.escape(prefix.removesuffix("_")) + r"_?(\d+)", name)
        if match:
            found[int(match.group(1))] = name
    return dict(sorted(found.items())) if len(found) > 1 else {}


def _check_sums(path: Path | str, probabilities: np.ndarray, *, first: int) -> None:
    wrong = np.abs(probabilities.sum(axis=1) - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{path}: the classes of {num_rows(int(wrong.sum()))} do not add up to 1, first of row {first + row} (sum "
            f"{probabilities[row].sum():.4g}). Expected the probabilities of all classes, not logits."
        )


def _targets(values: pd.Series[Any], path: Path | str, *, names: Sequence[str], form: Form, first: int) -> np.ndarray:
    """Labels as numbers: 0 and 1, or the places of the classes, whose column's name may stand for the place."""
    if form is Form.classes and values.dtype.kind not in "biuf" and set(map(str, values.unique())) <= set(names):
        return values.map({name: place for place, name in enumerate(names)}).to_numpy(dtype=np.int64)
    try:
        targets = values.to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: the target column {values.name!r} holds something other than numbers ({error})."
        ) from error
    last = {Form.binary: 1, Form.classes: len(names) - 1}.get(form, np.inf)
    wrong = ~((targets >= 0) & (targets <= last) & (targets % 1 == 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = "0 and 1" if form is Form.binary else "the numbers of classes, from 0"
        expected += f" to {last}" if form is Form.classes else ""
        hint = (
            f" Of many classes, name the column of every class with --column, or call the column {OF_LABEL!r} if it holds "
            "the probability of the correct class alone."
        )
        raise UserError(
            f"{path}: the target column {values.name!r} holds values other than {expected} in "
            f"{num_rows(int(wrong.sum()))}, first in row {first + row} ({values.iloc[row]}).{hint if form is Form.binary else ''}"
        )
    return targets.astype(np.int64)
