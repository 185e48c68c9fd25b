"""The release gate on files and run folders: reads the old and the new predictions, finds the same rows, judges, reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from odist.errors import UserError
from odist.files import write_atomically
from odist.measure.gate import Check, GateResult, gate, limits_with, parse_limit
from odist.measure.prediction_files import Retrain, listed
from odist.measure.predictions import chosen_slices, common_targets, load_predictions
from odist.measure.row_matching import match_rows

REPORTS = {".md": "Markdown", ".xml": "JUnit"}


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
    known = None if baseline is None else _read_baseline(baseline)
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


def _read_baseline(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--baseline {path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"--baseline {path}: expected what `odist churn --json` prints.")
    return content


def write_report(path: Path, result: GateResult) -> None:
    """Write a table (.md) or a test suite (.xml, JUnit) of the checks. UserError for another ending."""
    text = {".md": _markdown, ".xml": _junit}.get(path.suffix.lower())
    if text is None:
        raise UserError(f"--report {path}: expected a name that ends in {' or '.join(REPORTS)}.")
    write_atomically(path, text(result))


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
