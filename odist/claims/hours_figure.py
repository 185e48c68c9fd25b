"""The figure of `odist plan`: modelled hours against workers, in the shape of Anil et al. 2018, Figure 1b."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from odist.claims import style
from odist.errors import UserError
from odist.files import write_atomically


def draw_hours(path: Path, hours: Mapping[tuple[int, int], float]) -> None:
    """Draw modelled hours, a line for each number of groups. hours: (workers in all, groups) -> hours; path: an .svg"""
    if path.suffix != ".svg":
        raise UserError(f"--output {path}: expected a name that ends in .svg.")
    looks = {1: style.look("sync")}
    with style.drawing(6.0, 4.0) as figure:
        axes = figure.subplots()
        for groups in sorted({groups for _, groups in hours}):
            look = looks.setdefault(groups, style.look("codistill"))
            points = sorted((workers, value) for (workers, own), value in hours.items() if own == groups)
            axes.plot(
                *zip(*points, strict=True),
                color=look.colour,
                marker=look.marker,
                markerfacecolor=look.face,
                linestyle=look.line,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(
            sorted({workers for workers, _ in hours}), [str(workers) for workers in sorted({w for w, _ in hours})]
        )
        axes.set_ylim(bottom=0)
        style.finish(axes, x="workers in all", y="hours (modelled, not measured)")
        names = {f"{groups} groups, codistilled" if groups > 1 else "one group": look for groups, look in looks.items()}
        style.legend(figure, names)
        write_atomically(path, style.svg_text(figure, name="hours"))
