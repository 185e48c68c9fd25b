"""One look for all figures, and files whose bytes depend on nothing but what is drawn.

Figures are made without pyplot, so that no state is shared and no display is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers, without the yellow that vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

LINES = ("-", "--", ":")

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "svg.hashsalt": "odist",  # identifiers inside the SVG are random without it
    "svg.fonttype": "path",
}


def look(index: int) -> tuple[str, str, str]:
    """Colour, marker and line of the index-th system; no two are alike below 24."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], LINES[index // len(COLOURS) % len(LINES)]


def finish(axes: Axes, *, x: str, y: str) -> None:
    """Label the axes and put the legend below them, where it hides nothing."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.18), fontsize=8)


@contextmanager
def panels(count: int, *, rows: int = 1, systems: int = 3) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with `rows` times `count` axes, row by row, each with room for a legend of so many systems."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's would change the bytes
        mpl.rcParams.update(RC)
        figure = Figure(figsize=(4.8 * count, (3.2 + 0.2 * systems) * rows), dpi=150, layout="constrained")
        yield figure, list(figure.subplots(rows, count, squeeze=False).ravel())


def save(figure: Figure, base: Path) -> list[Path]:
    """Write `base`.png and `base`.svg, whole or not at all, without dates or program names."""
    base.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in ("png", "svg"):
        path = base.with_name(f"{base.name}.{kind}")
        temporary = base.with_name(f".{base.name}.{os.getpid()}.{kind}")
        try:
            figure.savefig(temporary, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        written.append(path)
    return written
