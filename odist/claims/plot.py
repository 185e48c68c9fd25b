"""Figures of run folders: learning curves, and loss against churn.

Draws what the runs recorded. odist.claims.legend says which runs share a figure and what they are called; `plot_runs`
writes the files of `odist plot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.claims import style
from odist.claims.legend import SystemRuns, comparisons, systems_of
from odist.claims.quantities import axis_label, higher_is_better
from odist.claims.style import Look
from odist.errors import UserError
from odist.measure.intervals import Interval
from odist.measure.predictions import compare_retrains
from odist.run.folder import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

X_LABELS = {
    "examples": "training examples per model",
    "steps": "training steps",
    "seconds": "training time (s, without evaluation)",
}
MAIN_METRICS = ("log_loss", "cross_entropy", "auc", "top1")
LOSSES = ("log_loss", "cross_entropy")  # what churn is drawn against: the first that is known
BANDS = "Lines: means over seeds; bands: from the lowest to the highest seed."
BARS = "Bars: 95 % intervals over retrains."
ONE_MEMBER = "The curve of an ensemble is one member's."


@dataclass
class Curves:
    """Learning curves of one system: how it is drawn and, for each seed, rows of metrics.jsonl of group 0."""

    label: str
    look: Look
    seeds: list[pd.DataFrame] = field(default_factory=list)

    @property
    def has_band(self) -> bool:
        return len(self.seeds) > 1 and bool(set.intersection(*(set(frame["step"]) for frame in self.seeds)))


@dataclass(frozen=True)
class Point:
    """One system's loss and churn between its retrains, with their 95 % intervals where there are any."""

    label: str
    look: Look
    churn: float
    loss: float
    churn_interval: Interval | None = None
    loss_interval: Interval | None = None


def draw_curves(axes: Axes, curves: Sequence[Curves], *, metric: str, x: str = "examples") -> None:
    """Draw one line a system: the mean over seeds, in a band from the lowest to the highest seed.

    Steps that not every seed has reached are left out of a mean; seeds that share no step get a line each.
    """
    import numpy as np

    column = "step" if x == "steps" else x
    for system in curves:
        own = system.look
        frames = [frame.dropna(subset=[metric]).drop_duplicates("step", keep="last") for frame in system.seeds]
        common = sorted(set.intersection(*(set(frame["step"]) for frame in frames)))
        if len(frames) == 1 or not common:
            for frame in frames:
                marker = own.marker if len(frame) == 1 else ""  # a line of one point would not be seen
                axes.plot(
                    frame[column],
                    frame[metric],
                    color=own.colour,
                    linestyle=own.line,
                    marker=marker,
                    markerfacecolor=own.face,
                )
            continue
        shared = [frame[frame["step"].isin(common)].sort_values("step") for frame in frames]
        values = np.stack([frame[metric].to_numpy(float) for frame in shared])
        where = np.stack([frame[column].to_numpy(float) for frame in shared]).mean(axis=0)
        axes.plot(where, values.mean(axis=0), color=own.colour, linestyle=own.line)
        axes.fill_between(where, values.min(axis=0), values.max(axis=0), color=own.colour, alpha=0.18, linewidth=0)
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    style.finish(axes, x=X_LABELS[x], y=axis_label(metric))


def draw_points(axes: Axes, curves: Sequence[tuple[Look, Sequence[tuple[float, float]]]], *, metric: str) -> None:
    """Draw published curves by steps. curves: how each is drawn, its points (step, value)."""
    from matplotlib.ticker import EngFormatter

    for own, points in curves:
        x, y = zip(*points, strict=True)
        axes.plot(
            x,
            y,
            color=own.colour,
            linestyle=own.line,
            marker=own.marker,
            markerfacecolor=own.face,
            markersize=2.5,
            linewidth=0.9,
        )
    values = sorted(value for _, points in curves for _, value in points)
    if values and higher_is_better(metric):  # the worst fifth, mostly from the start, would flatten the rest
        axes.set_ylim(max(0.0, values[len(values) // 5] - 0.1), values[-1] + 0.03)
    elif values:
        axes.set_ylim(values[0] - 0.03, values[len(values) * 4 // 5] + 0.1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    style.finish(axes, x=X_LABELS["steps"], y=axis_label(metric))


def draw_tradeoff(
    axes: Axes, points: Sequence[Point], *, metric: str = "log_loss", between: str = "between retrains"
) -> None:
    """Draw loss against churn, one point a system with the intervals of both; lower left is better.

    metric: what `loss` is; one for which higher is better is named on its axis; between: what `churn` is measured from
    """
    for point in points:
        errors: dict[str, Any] = {}
        for axis, value, interval in (
            ("xerr", point.churn, point.churn_interval),
            ("yerr", point.loss, point.loss_interval),
        ):
            errors[axis] = None if interval is None else [[value - interval[0]], [interval[1] - value]]
        own = point.look
        axes.errorbar(
            point.churn, point.loss, **errors, fmt=own.marker, color=own.colour, markerfacecolor=own.face, capsize=3
        )
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.12)
    y = axis_label(metric) if higher_is_better(metric) else "validation loss (nats)"
    distance = "|p₁ − p₂|" if metric == "log_loss" else "distance of predictions"
    style.finish(axes, x=f"churn: mean {distance} {between} (lower: steadier)", y=y)


def band_notes(curves: Sequence[Curves]) -> list[str]:
    """What the lines and bands of these curves are; nothing where there is no band."""
    return [BANDS] if any(system.has_band for system in curves) else []


def plot_metric(runs: Sequence[Run], *, metric: str, output: Path, x: str = "examples", title: str = "") -> list[Path]:
    """Plot learning curves of one metric to `output`.png and `output`.svg.

    runs: of one task on the same rows; those that differ only in the seed are drawn as one line with a band
    metric: a numeric column of metrics.jsonl, of evaluations or else of training rows
    output: path without suffix
    x: examples | steps | seconds
    Raises UserError for an unknown x, for a metric that no run has, with those they have, and for more than can be
    drawn.
    """
    if x not in X_LABELS:
        raise UserError(f"cannot plot against {x!r}. Choose among: {', '.join(X_LABELS)}.")
    curves, notes = [], []
    systems = systems_of(runs)
    for system, look in _with_looks(systems):
        frames = [frame for frame in (_rows_with(run, metric) for run in system.runs) if frame is not None]
        if frames:
            number = f" ({len(frames)} seeds)" if len(frames) > 1 else ""
            curves.append(Curves(system.label + number, look, frames))
            notes += [ONE_MEMBER] if _predicts_by_mean(system.runs) else []
    if not curves:
        known = ", ".join(_known_metrics(runs)) or "none yet"
        raise UserError(f"no run has the metric {metric!r}. They have: {known}.")
    with style.panels(1) as (figure, [axes]):
        draw_curves(axes, curves, metric=metric, x=x)
        axes.set_title(title)
        style.legend(
            figure, {c.label: c.look for c in curves}, notes=[*band_notes(curves), *dict.fromkeys(notes)], markers=False
        )
        return style.save(figure, output)


def plot_tradeoff(points: Sequence[Point], *, output: Path, metric: str = "log_loss", title: str = "") -> list[Path]:
    """Plot loss against churn to `output`.png and `output`.svg; lower left is better."""
    with style.panels(1) as (figure, [axes]):
        draw_tradeoff(axes, points, metric=metric)
        axes.set_title(title)
        bars = any(point.churn_interval or point.loss_interval for point in points)
        style.legend(figure, {p.label: p.look for p in points}, notes=[BARS] if bars else [])
        return style.save(figure, output)


def plot_runs(
    runs: Sequence[Run], *, output: Path, metrics: Sequence[str] | None = None, x: str = "examples"
) -> list[Path]:
    """Plot runs into the folder `output`: for each task and data set a figure a metric, and loss against churn.

    Files are called TASK-DATA-FINGERPRINT-METRIC and TASK-DATA-FINGERPRINT-tradeoff; the last where there are retrains.
    metrics: by default those of log_loss, cross_entropy, auc and top1 that the runs have
    """
    if not runs:
        raise UserError("no runs to plot. `odist runs` lists those below ./runs.")
    recorded = _known_metrics(runs)
    if not recorded:
        raise UserError("the runs have recorded nothing to plot yet.")
    for metric in metrics or ():
        if metric not in recorded:
            raise UserError(f"no run has the metric {metric!r}. They have: {', '.join(recorded)}.")
    written = []
    for group in comparisons(runs):
        known = _known_metrics(group.runs)
        main = [metric for metric in MAIN_METRICS if metric in known] or known[:1]
        for metric in [metric for metric in metrics if metric in known] if metrics else main:
            base = output / f"{group.name}-{metric}"
            written += plot_metric(group.runs, metric=metric, output=base, x=x, title=group.title)
        if not metrics:
            loss = next((name for name in LOSSES if name in known), LOSSES[0])
            written += _plot_tradeoff_of(
                group.runs, loss=loss, base=output / f"{group.name}-tradeoff", title=group.title
            )
    return written


def _plot_tradeoff_of(runs: Sequence[Run], *, loss: str, base: Path, title: str) -> list[Path]:
    """Loss against churn of those systems that have retrains; nothing without any."""
    points: list[Point] = []
    for system, look in _with_looks(systems_of(runs)):
        finished = [
            run for run in system.runs if run.finished and (run.prediction_root("validation") / "meta.json").is_file()
        ]
        if len(finished) > 1:
            result = compare_retrains([run.path for run in finished], slices=()).metrics
            point = point_of(f"{system.label} ({len(finished)} seeds)", look, churn=result)
            points += [] if point is None else [point]
    return plot_tradeoff(points, output=base, metric=loss, title=title) if points else []


def _with_looks(systems: Sequence[SystemRuns]) -> list[tuple[SystemRuns, Look]]:
    looks = style.looks({system.label: system.algorithm for system in systems})
    return [(system, looks[system.label]) for system in systems]


def _numeric(frame: pd.DataFrame, metric: str) -> bool:
    import pandas as pd

    return metric in frame and bool(pd.to_numeric(frame[metric], errors="coerce").notna().any())


def _rows_with(run: Run, metric: str) -> pd.DataFrame | None:
    """Group 0's evaluation rows that hold the metric, else its training rows, else None."""
    for kind in ("evaluate", "train"):
        frame = run.metrics(kind=kind)
        if not frame.empty and _numeric(frame, metric):
            return frame[frame["group"] == 0] if "group" in frame else frame
    return None


def _known_metrics(runs: Sequence[Run]) -> list[str]:
    keys = ("kind", "group", "step", "examples", "seconds", "time", "rows", "split")
    names = (name for run in runs for name in run.metrics().columns)
    return [name for name in dict.fromkeys(names) if name not in keys]


def _predicts_by_mean(runs: Sequence[Run]) -> bool:
    """Whether the runs are of an ensemble, whose curve is one member's: its mean prediction is made at the end only."""
    return any(run.finished and run.results.get("predictor") == "mean" for run in runs)


def point_of(label: str, look: Look, *, churn: Mapping[str, Any], measure: str = "mean_abs_difference") -> Point | None:
    """One system's point, from metrics of its retrains with `<name>_interval` keys; None where they lack a loss."""
    loss = next((name for name in LOSSES if churn.get(name) is not None), None)
    if loss is None or churn.get(measure) is None:
        return None
    return Point(
        label, look, churn[measure], churn[loss], churn.get(f"{measure}_interval"), churn.get(f"{loss}_interval")
    )
