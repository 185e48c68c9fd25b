"""The release gate on files and run folders: reads the old and the new predictions, finds the same rows, judges, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from odist.errors import UserError
from odist.files import write_atomically
from odist.measure.gate import Check, GateResult, Limit, gate_rows, limits_with, parse_limit
from odist.measure.keyed_parts import PART_ROWS
from odist.measure.pairing import PairedTables, check_columns
from odist.measure.prediction_files import listed
from odist.measure.prediction_tables import BATCH_ROWS, Predicted, open_table
from odist.run.damage import read_json

BUILT_IN = ("decile", "label", "position")  # slices that need no further column; see odist.measure.slices
BASELINE_CURE = "Make it again: odist churn RETRAIN RETRAIN --json > churn.json"


def judge_release(
    old: Path | str,
    new: Path | str,
    *,
    limits: Sequence[str],
    baseline: Path | None = None,
    **how: Any,
) -> GateResult:
    """Judge new predictions by limits on how far they moved from the old ones.

    old, new: run folders, CSV or Parquet files, or URLs of such; limits: as `parse_limit` reads them
    baseline: a file of `odist churn --json`; how: keywords of `compare_release`
    Raises UserError for an unknown measure, slice or column, and for predictions that cannot be compared.
    """
    parsed = [parse_limit(text) for text in limits]
    known = None if baseline is None else read_json(baseline, cure=BASELINE_CURE)
    return compare_release(old, new, limits=limits_with(parsed, known), **how)


def compare_release(
    old: Predicted,
    new: Predicted,
    *,
    limits: Sequence[Limit] = (),
    split: str = "validation",
    column: Sequence[str] = (),
    target: str | np.ndarray | None = None,
    key: str | np.ndarray | None = None,
    by_order: bool = False,
    slices: Sequence[str] | Mapping[str, np.ndarray] = (),
    cluster: str | np.ndarray | None = None,
    weight: str | np.ndarray | None = None,
    threshold: float = 0.5,
    confidence: float = 0.95,
    batch_rows: int = BATCH_ROWS,
    part_rows: int = PART_ROWS,
) -> GateResult:
    """Measure how far new predictions moved from the old ones, in bounded memory; see odist.measure.gate.

    old, new: a run folder, a CSV or Parquet file or the URL of one, a DataFrame, or probabilities [rows] or [rows, classes]
    column, target, key, by_order: as `odist.measure.predictions.compare_retrains`
    cluster, weight: columns of the old table; target, cluster, weight and slices may be arrays [rows] beside arrays
    batch_rows: rows read at once; part_rows: of what is joined in memory
    Raises UserError for predictions that cannot be compared, and for a column or measure that they lack.
    """
    named, given = _columns_given(target=target, key=key, cluster=cluster, weight=weight)
    if isinstance(slices, Mapping):
        given |= {name: np.asarray(values) for name, values in slices.items()}
        slices = list(slices)
    for_new = {name: values for name, values in given.items() if name in (named["target"], named["key"])}
    tables = (
        open_table(old, name="old", split=split, columns=given),
        open_table(new, name="new", split=split, columns=for_new),
    )
    check_columns(tables[0], {"--cluster": named["cluster"], "--weight": named["weight"]})
    known = [name for name in tables[0].columns if name not in BUILT_IN or name in given]
    wrong = next((name for name in slices if name not in (*BUILT_IN, *known)), None)
    if wrong is not None:
        raise UserError(f"no slice {wrong!r}. Choose among: {listed([*BUILT_IN, *known])}.")
    columns = [name for name in (named["cluster"], named["weight"], *slices) if name in known]
    with PairedTables(
        *tables,
        column=column,
        target=named["target"],
        wanted=list(dict.fromkeys(map(str, columns))),
        key=named["key"],
        by_order=by_order,
        batch_rows=batch_rows,
        part_rows=part_rows,
    ) as paired:
        labelled = any(layout.target is not None for layout in paired.layouts)
        result = gate_rows(
            paired.pieces,
            limits=limits,
            form=paired.form,
            weight=named["weight"],
            cluster=named["cluster"],
            slices=[name for name in slices if name != "label" or labelled or name in given],
            threshold=threshold,
            confidence=confidence,
            names=(tables[0].name, tables[1].name),
        )
    result.notes.extend(paired.notes)
    return result


def churn(old: Predicted, new: Predicted, *, max: Mapping[str, float] | Sequence[str] = (), **how: Any) -> GateResult:
    """How far new predictions moved from the old ones; the numbers of `odist churn OLD NEW --max MEASURE=NUMBER`.

    old, new: a run folder, a CSV or Parquet file or the URL of one, a DataFrame, or probabilities [rows] or [rows, classes]
    max: limits, as in {"flips": 0.01, "mean_abs_difference": 0.02}; `passed` of the result says whether all of them hold
    how: target, key, weight, cluster and slices as columns, or as arrays beside arrays, and what else
        `odist.measure.release.compare_release` takes
    Raises odist.errors.UserError for predictions that cannot be compared.
    """
    texts = [f"{name}={value}" for name, value in max.items()] if isinstance(max, Mapping) else max
    return compare_release(old, new, limits=limits_with([parse_limit(text) for text in texts], None), **how)


def _columns_given(**options: str | np.ndarray | None) -> tuple[dict[str, str | None], dict[str, np.ndarray]]:
    """The column that each option names, and arrays that stand for columns, which get the options' names."""
    named: dict[str, str | None] = {}
    given: dict[str, np.ndarray] = {}
    for option, value in options.items():
        if value is None or isinstance(value, str):
            named[option] = value
        else:
            named[option], given[option] = option, np.asarray(value)
    return named, given


def write_report(path: Path, result: GateResult) -> None:
    """Write a table (.md) or a test suite (.xml, JUnit) of the checks. UserError for another ending."""
    writers = {".md": _markdown, ".xml": _junit}
    if path.suffix.lower() not in writers:
        raise UserError(f"--report {path}: expected a name that ends in {' or '.join(writers)}.")
    write_atomically(path, writers[path.suffix.lower()](result))


def words_of(check: Check) -> str:
    """One check as a sentence."""
    low, high = check.interval
    verdict = "exceeds" if check.exceeded else "is within"
    return f"{check.measure} of {check.where}: {check.value:.5g} [{low:.5g}, {high:.5g}] {verdict} {check.limit:.5g}"


def _markdown(result: GateResult) -> str:
    head = f"# Release gate: {'passed' if result.passed else 'failed'}\n\n`{result.new}` against `{result.old}`, {result.rows:,} rows.\n"
    lines = ["| measure | rows | value | 95 % interval | limit | |", "| --- | --- | --- | --- | --- | --- |"]
    for check in result.checks:
        low, high = check.interval
        verdict = "**exceeded**" if check.exceeded else "within"
        lines.append(
            f"| {check.measure} | {check.where} ({check.rows:,}) | {check.value:.5g} | {low:.5g} to {high:.5g} | "
            f"{check.limit:.5g} | {verdict} |"
        )
    return "\n".join([head, *lines, "", *(f"- {note}" for note in result.notes)]).rstrip() + "\n"


def _junit(result: GateResult) -> str:
    failures = sum(check.exceeded for check in result.checks)
    suite = ElementTree.Element(
        "testsuite", name="odist churn", tests=str(len(result.checks)), failures=str(failures), errors="0"
    )
    for check in result.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=check.where, name=check.measure)
        if check.exceeded:
            ElementTree.SubElement(case, "failure", message=words_of(check))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
