"""`odist plot`: figures of the runs at or below some folders; damaged runs are named and skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from odist.errors import Damaged, UserError
from odist.run.folder import Run
from odist.run.log import note


def plot(paths: Sequence[Path], *, output: Path, metrics: Sequence[str] | None, x: str) -> None:
    """Draw figures of runs into `output` and print their names.

    metrics: to draw, None for those that the runs have; x: the horizontal axis
    """
    from odist.claims.plot import plot_runs

    found: list[Run] = []
    for path in paths:
        found += list(Run.find(path)) or [Run.open(path)]
    sound = []
    for run in found:
        try:
            run.check()
            sound.append(run)
        except Damaged as error:
            note(f"skipped: {error}")
    if found and not sound:
        raise UserError("all of these runs are damaged (see above): nothing to plot.")
    for figure in plot_runs(sound, output=output, metrics=metrics, x=x):
        print(figure)
