"""Figures of run folders: learning curves, and loss against churn.

Draws what the runs recorded; which files a command writes is decided by `plot_runs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.errors import UserError
from odist.report import style
from odist.report.quantities import axis_label, higher_is_better
from odist.retrains import compare_retrains
from odist.run import Run
from odist.systems import system_differences, system_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

X_LABELS = {
    "examples": "training examples per model",
    "steps": "training steps",
    "seconds": "training time (s, without evaluation)",
}
MAIN_METRICS = ("log_loss", "cross_entropy", "auc", "top1")


@dataclass
class Curves:
    """Learning curves of one system: a label and, for each seed, rows of metrics.jsonl of group 0."""

    label: str
    seeds: list[pd.DataFrame] = field(default_factory=list)


def systems_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by system, that is by their configuration without the seed; keys are legends.

    A legend is the algorithm's name and, where it names several systems, the keys that tell them apart.
    """
    settings: list[dict[str, Any]] = []
    members: list[list[Run]] = []
    for run in runs:
        system = system_of(run.config)
        if system in settings:
            members[settings.index(system)].append(run)
        else:
            settings.append(system)
            members.append([run])
    names = [str(system.get("algorithm.name", runs[0].name)) for system in settings]
    labels = []
    for system, its, name in zip(settings, members, names, strict=True):
        rivals = [other[0].config for other, its_name in zip(members, names, strict=True) if its_name == name]
        differing = list(system_differences([its[0].config, *rivals]))
        labels.append(", ".join([name, *(f"{key}={system.get(key)}" for key in differing[:3])]))
    return {
        label if labels.count(label) == 1 else f"{label} ({index + 1})": its
        for index, (label, its) in enumerate(zip(labels, members, strict=True))
    }


def draw_curves(axes: Axes, curves: Sequence[Curves], *, metric: str, x: str = "examples") -> None:
    """Draw one line a system: the mean over seeds, in a band from the lowest to the highest seed.

    Steps that not every seed has reached are left out of a mean; seeds that share no step get a line each.
    """
    import numpy as np

    column = "step" if x == "steps" else x
    for index, system in enumerate(curves):
        colour, _, line = style.look(index)
        frames = [frame.dropna(subset=[metric]).drop_duplicates("step", keep="last") for frame in system.seeds]
        common = sorted(set.intersection(*(set(frame["step"]) for frame in frames)))
        if len(frames) == 1 or not common:
            for seed, frame in enumerate(frames):
                label = system.label if seed == 0 else None
                axes.plot(frame[column], frame[metric], color=colour, linestyle=line, label=label)
            continue
        shared = [frame[frame["step"].isin(common)].sort_values("step") for frame in frames]
        values = np.stack([frame[metric].to_numpy(float) for frame in shared])
        where = np.stack([frame[column].to_numpy(float) for frame in shared]).mean(axis=0)
        label = f"{system.label} ({len(frames)} seeds)"
        axes.plot(where, values.mean(axis=0), color=colour, linestyle=line, label=label)
        axes.fill_between(where, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    style.finish(axes, x=X_LABELS[x], y=axis_label(metric))


def draw_points(axes: Axes, curves: Mapping[str, tuple[int, Sequence[tuple[float, float]]]], *, metric: str) -> None:
    """Draw published curves by steps. curves: label -> (index of its look, its points (step, value))."""
    from matplotlib.ticker import EngFormatter

    for label, (index, points) in curves.items():
        colour, marker, line = style.look(index)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=2.5, linewidth=0.9, label=label)
    values = sorted(value for _, points in curves.values() for _, value in points)
    if values and higher_is_better(metric):  # the worst fifth, mostly from the start, would flatten the rest
        axes.set_ylim(max(0.0, values[len(values) // 5] - 0.1), values[-1] + 0.03)
    elif values:
        axes.set_ylim(values[0] - 0.03, values[len(values) * 4 // 5] + 0.1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    style.finish(axes, x=X_LABELS["steps"], y=axis_label(metric))


def draw_tradeoff(axes: Axes, frame: pd.DataFrame, *, metric: str = "log_loss") -> None:
    """Draw loss against churn, one point a system with the intervals of both; see `plot_tradeoff`.

    metric: what the columns `loss` hold; one for which higher is better is named on its axis
    """
    for index, row in enumerate(frame.to_dict("records")):
        errors: dict[str, Any] = {}
        for axis, name in (("xerr", "churn"), ("yerr", "loss")):
            low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
            known = low is not None and high is not None and low == low and high == high  # neither None nor NaN
            errors[axis] = [[row[name] - low], [high - row[name]]] if known else None
        colour, marker, _ = style.look(index)
        axes.errorbar(
            row["churn"],
            row["loss"],
            xerr=errors["xerr"],
            yerr=errors["yerr"],
            fmt=marker,
            color=colour,
            capsize=3,
            label=row["system"],
        )
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.12)
    y = axis_label(metric) if higher_is_better(metric) else "validation loss (nats)"
    style.finish(axes, x="mean |p₁ − p₂| between retrains (lower: steadier)", y=y)


def plot_metric(runs: Sequence[Run], *, metric: str, output: Path, x: str = "examples") -> list[Path]:
    """Plot learning curves of one metric to `output`.png and `output`.svg.

    runs: any; those that differ only in the seed are drawn as one line with a band
    metric: a numeric column of metrics.jsonl, of evaluations or else of training rows
    output: path without suffix
    x: examples | steps | seconds
    UserError for an unknown x, and for a metric that no run has, with those they have.
    """
    if x not in X_LABELS:
        raise UserError(f"cannot plot against {x!r}. Choose among: {', '.join(X_LABELS)}.")
    curves = []
    for label, members in systems_of(runs).items():
        frames = [frame for frame in (_rows_with(run, metric) for run in members) if frame is not None]
        if frames:
            curves.append(Curves(label + _predictor_note(members), frames))
    if not curves:
        known = ", ".join(_known_metrics(runs)) or "none yet"
        raise UserError(f"no run has the metric {metric!r}. They have: {known}.")
    with style.panels(1, systems=len(curves)) as (figure, [axes]):
        draw_curves(axes, curves, metric=metric, x=x)
        return style.save(figure, output)


def plot_tradeoff(frame: pd.DataFrame, *, output: Path) -> list[Path]:
    """Plot loss against churn to `output`.png and `output`.svg; lower left is better.

    frame: one row a system with columns system, churn, loss, and churn_low, churn_high, loss_low,
        loss_high, which may be missing or empty where there is no interval
    """
    with style.panels(1, systems=len(frame)) as (figure, [axes]):
        draw_tradeoff(axes, frame)
        return style.save(figure, output)


def plot_runs(
    runs: Sequence[Run], *, output: Path, metrics: Sequence[str] | None = None, x: str = "examples"
) -> list[Path]:
    """Plot runs into the folder `output`: a figure a metric, and loss against churn where there are retrains.

    metrics: by default those of log_loss, cross_entropy, auc and top1 that the runs have
    """
    if not runs:
        raise UserError("no runs to plot. `odist runs` lists those below ./runs.")
    known = _known_metrics(runs)
    chosen = list(metrics) if metrics else [metric for metric in MAIN_METRICS if metric in known] or known[:1]
    if not chosen:
        raise UserError("the runs have recorded nothing to plot yet.")
    written = []
    for metric in chosen:
        written += plot_metric(runs, metric=metric, output=output / metric, x=x)
    rows = [row for row in (_tradeoff_row(label, members) for label, members in systems_of(runs).items()) if row]
    if rows and not metrics:
        import pandas as pd

        written += plot_tradeoff(pd.DataFrame(rows), output=output / "tradeoff")
    return written


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


def _predictor_note(runs: Sequence[Run]) -> str:
    """Says that the curve of an ensemble is one member's: its mean prediction is made at the end only."""
    mean = any(run.finished and run.results.get("predictor") == "mean" for run in runs)
    return ", one member" if mean else ""


def _tradeoff_row(label: str, runs: Sequence[Run]) -> dict[str, Any] | None:
    finished = [run for run in runs if run.finished and (run.prediction_root("validation") / "meta.json").is_file()]
    if len(finished) < 2:
        return None
    result = compare_retrains([run.path for run in finished], slices=()).metrics
    return tradeoff_row(f"{label} ({len(finished)})", churn=result, loss="log_loss")


def tradeoff_row(
    label: str, *, churn: Mapping[str, Any], loss: str, measure: str = "mean_abs_difference"
) -> dict[str, Any]:
    """One row of `plot_tradeoff`'s frame from metrics with `<name>_interval` keys."""
    row: dict[str, Any] = {"system": label, "churn": churn[measure], "loss": churn[loss]}
    for name, key in (("churn", measure), ("loss", loss)):
        interval = churn.get(f"{key}_interval")
        row |= {f"{name}_low": interval and interval[0], f"{name}_high": interval and interval[1]}
    return row
