"""`odist churn OLD NEW --max ...` on the command line: a table of limits, a report, and the exit code of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from odist.cli.printing import as_json, number, print_table
from odist.errors import UserError

EXCEEDED = 5  # exit code of a release that moved too far


def refuse_without_limits(options: Mapping[str, Any]) -> None:
    """Raise UserError for options that belong to the gate alone."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{', '.join(given)}: only with --max. Type --max mean_abs_difference=0.02, for example.")


def release(paths: Sequence[Path | str], *, report: Path | None, json: bool, **how: Any) -> None:
    """Judge the second path by how far it moved from the first, print the table, exit with 5 if a limit is exceeded.

    how: the keywords of `odist.measure.release.judge_release`
    """
    from odist.measure.gate_measures import MEASURES
    from odist.measure.release import judge_release, words_of, write_report

    if len(paths) != 2:
        raise UserError(f"--max compares a new model with the released one: expected OLD NEW, got {len(paths)} paths.")
    result = judge_release(*paths, **how)
    if report is not None:
        write_report(report, result)
    if json:
        print(as_json(result.to_dict()))
    else:
        print(f"{result.new} against {result.old}, {result.rows:,} rows")
        rows = [
            {
                "measure": check.measure,
                "rows": f"{check.where} ({check.rows:,})",
                "value": number(check.value),
                "95 % interval": " to ".join(number(end) for end in check.interval),
                "limit": number(check.limit),
                "": "exceeded" if check.exceeded else "within",
            }
            for check in result.checks
        ]
        print_table(rows, right={"value", "limit"})
        for measure in dict.fromkeys(check.measure for check in result.checks):
            print(f"{measure}: {MEASURES[measure]}")
        for sentence in result.notes:
            print(f"note: {sentence}")
        for check in result.checks:
            if check.exceeded:
                print(f"exceeded: {words_of(check)}")
    if not result.passed:
        raise typer.Exit(EXCEEDED)
