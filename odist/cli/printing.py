"""What several commands print about runs: lines, tables and JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from odist.files import finite
from odist.launch.opening import trained_by
from odist.run.folder import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from odist.measure.churn import ChurnResult

MAIN_METRICS = ("log_loss", "cross_entropy")  # the first that a run has
SHOWN_METRICS = (
    *MAIN_METRICS,
    "excess_log_loss",
    "excess_cross_entropy",
    "perplexity",
    "bits_per_byte",
    "auc",
    "accuracy",
    "top1",
)


def main_metric(results: Mapping[str, Any]) -> float | None:
    """The number by which runs of a task are compared, lower is better."""
    metrics = results.get("metrics", results)
    return next((metrics[name] for name in MAIN_METRICS if metrics.get(name) is not None), None)


def number(value: Any) -> str:
    """A value for a table cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e-3 and value != 0 else f"{value:.5f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def interval(bounds: Sequence[float] | None) -> str:
    """A confidence interval for a table cell."""
    return "-" if bounds is None else f"{number(float(bounds[0]))} to {number(float(bounds[1]))}"


def as_json(content: Any) -> str:
    """JSON for programs; numbers that are not finite become null."""
    return json.dumps(finite(content), indent=1)


def result_line(run: Run) -> str:
    """One line with the numbers of a finished run."""
    results = run.results
    shown = [f"{name} {number(results['metrics'][name])}" for name in SHOWN_METRICS if name in results["metrics"]]
    return f"{run.path}: finished after {results.get('steps', '?')} steps; {results['split']} {', '.join(shown)}"


def untaught(run: Run) -> list[str]:
    """A sentence if groups of a codistilled run never had a teacher, and so are not codistilled models."""
    groups = run.untaught_groups
    if not groups:
        return []
    named = f"group {groups[0]}" if len(groups) == 1 else f"groups {', '.join(map(str, groups))}"
    reasons = {own["exchange_reason"] for own in run.results["groups"] if own and own.get("exchange_reason")}
    why = f" The exchange said: {'; '.join(sorted(reasons))}" if reasons else ""
    return [f"{run.path}: {named} never had a teacher: trained alone, on the labels only.{why}"]


def state_of(run: Run) -> str:
    """The state of a run; `interrupted` where the process that trained it is gone."""
    status = run.status
    state = str(status.get("state", "unknown"))
    here = status.get("host", platform.node()) == platform.node()
    return "interrupted" if state == "running" and here and trained_by(run) is None else state


def print_metrics(results: Mapping[str, Any]) -> None:
    """Print metrics with their intervals."""
    table = _table(["metric", "value", "95 % interval"], right={"value"})
    for name, value in results.items():
        if name.endswith("_interval") or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        table.add_row(name, number(value), interval(results.get(f"{name}_interval")))
    _print(table)


def print_churn(result: ChurnResult) -> None:
    """Print churn: the measures, the runs, the slices, then what to know before believing them."""
    from odist.measure.churn import SHOWN_NAMES

    pairs = len(result.pairs)
    print(f"{len(result.names)} retrains, {pairs} {'pair' if pairs == 1 else 'pairs'}, {result.rows:,} rows")
    names = {measure: SHOWN_NAMES.get((result.form, measure), measure) for measure in result.definitions}
    distance = names["mean_abs_difference"]
    print_metrics({key.replace("mean_abs_difference", distance): value for key, value in result.metrics.items()})
    for measure, meaning in result.definitions.items():
        print(f"{names[measure]}: {meaning}")
    measured = [name for name in result.runs[0] if any(isinstance(row[name], float) for row in result.runs)]
    if measured:
        lines = [{"retrain": row["name"], **{name: number(row[name]) for name in measured}} for row in result.runs]
        print_table(lines, right=set(measured))
    for name, rows in result.slices.items():
        lines = [
            {
                name: row["value"],
                "rows": f"{row['rows']:,}",
                distance: number(row["mean_abs_difference"]),
                "95 % interval": interval(row["mean_abs_difference_interval"]),
            }
            for row in rows
        ]
        print_table(lines, right={"rows", distance})
    for note in result.notes:
        print(f"note: {note}")


def print_table(lines: Sequence[Mapping[str, Any]], *, right: set[str], dispensable: Sequence[str] = ()) -> None:
    """Print lines with equal keys as a table.

    right: columns of numbers; dispensable: columns to leave out, one after another, where the terminal is too narrow
    """
    console = _console()
    columns = list(lines[0])
    for left_out in (None, *dispensable):
        columns = [column for column in columns if column != left_out]
        table = _table(columns, right=right)
        for line in lines:
            table.add_row(*(str(line[column]) for column in columns))
        if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
            break
    console.print(table)


def _table(columns: Sequence[str], *, right: set[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=index > 0)
    return table


def _print(table: Table) -> None:
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
