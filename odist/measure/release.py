"""The release gate on files and run folders: reads the old and the new predictions, finds the same rows, judges, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from odist.errors import UserError
from odist.files import write_atomically
from odist.measure.gate import Check, GateResult, gate, limits_with, parse_limit
from odist.measure.prediction_files import Retrain, listed
from odist.measure.predictions import chosen_slices, common_targets, load_predictions
from odist.measure.row_matching import match_rows
from odist.run.damage import read_json

BASELINE_CURE = "Make it again: odist churn RETRAIN RETRAIN --json > churn.json"


def judge_release(
    old: Path,
    new: Path,
    *,
    limits: Sequence[str],
    baseline: Path | None = None,
    split: str = "validation",
    column: Sequence[str] = (),
    target: str | None = None,
    key: str | None = None,
    by_order: bool = False,
    slices: Sequence[str] = (),
    cluster: str | None = None,
    weight: str | None = None,
    threshold: float = 0.5,
) -> GateResult:
    """Judge new predictions by limits on how far they moved from the old ones; see odist.measure.gate.

    old, new: run folders, CSV or Parquet files; baseline: a file of `odist churn --json`
    cluster, weight: columns of the old file; others: as `odist.measure.predictions.compare_retrains`
    Raises UserError for an unknown measure, slice or column, and for predictions that cannot be compared.
    """
    parsed = [parse_limit(text) for text in limits]
    known = None if baseline is None else read_json(baseline, cure=BASELINE_CURE)
    plain = limits_with(parsed, known)
    both = [load_predictions(path, split=split, column=column, target=target) for path in (old, new)]
    if both[0].form is not both[1].form:
        raise UserError(f"{old} holds the {both[0].form.value}, {new} the {both[1].form.value}.")
    both, notes = match_rows(both, key=key, by_order=by_order)
    targets = common_targets(both)
    result = gate(
        both[0].probabilities,
        both[1].probabilities,
        limits=plain,
        form=both[0].form,
        targets=targets,
        weights=None if weight is None else _column(both[0], weight, option="--weight").astype(np.float64),
        clusters=None if cluster is None else _column(both[0], cluster, option="--cluster"),
        slices=chosen_slices(both, targets, slices),
        threshold=threshold,
        names=(str(old), str(new)),
    )
    result.notes.extend(notes)
    return result


def _column(retrain: Retrain, name: str, *, option: str) -> np.ndarray:
    if name not in retrain.columns:
        raise UserError(f"{option} {name}: {retrain.path} has no such column. Choose among: {listed(retrain.columns)}.")
    return np.asarray(retrain.columns[name])


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
