"""One look for all figures, and files whose bytes depend on nothing but what is drawn.

A system has the colour of its algorithm, in every figure. Figures are made without pyplot, so that no state is shared
and no display is needed.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.errors import UserError
from odist.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Algorithm: colour, marker, and which of LINES comes first. Okabe and Ito's colours, told apart by colour-blind
# readers, without the yellow that vanishes on white. The first member of an ensemble is the single model, so its line
# shows that below.
ALGORITHMS = {
    "sync": ("#0072B2", "o", 0),
    "codistill": ("#009E73", "D", 0),
    "ensemble": ("#D55E00", "s", 1),
    "label_smoothing": ("#CC79A7", "^", 0),
    "distill": ("#E69F00", "v", 0),
    "delayed": ("#56B4E9", "P", 0),
    "local_sgd": ("#333333", "X", 0),
    "post_local": ("#999999", "X", 2),
    "diloco": ("#882255", "<", 0),
    "papa": ("#332288", ">", 0),
}
OTHER = ("#8C6D31", "p", 0)  # an algorithm of the user's own
SHADES = (
    ("#000000", 0.0),
    ("#000000", 0.45),
    ("#FFFFFF", 0.4),
    ("#000000", 0.7),
)  # what is mixed in, and how much of it
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))

PANEL = (4.8, 3.2)  # inches, with its labels
ALONE = 6.4  # width of the only panel of a figure, inches
SMALLEST = (1.8, 1.4)  # inches between the axes; below it nothing can be read
LEGEND_SIZE = 8.0  # points
LINE_HEIGHT = 0.16  # inches of a line of the legend
CHARACTER = 0.066  # inches of a character of the legend, on average
HANDLE = 0.65  # inches of a sample of the line, with its margins
LARGEST_NUMBER_OF_LINES = 3  # of one name in the legend

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


@dataclass(frozen=True)
class Look:
    """How one system is drawn. filled: its markers; an open one has the colour of the paper inside."""

    colour: str
    marker: str
    line: Any
    filled: bool = True

    @property
    def face(self) -> str:
        return self.colour if self.filled else "#FFFFFF"


def look(algorithm: str, shade: int = 0) -> Look:
    """The look of the shade-th system of an algorithm: its colour, lighter or darker, with a line of its own.

    algorithm: a name of ALGORITHMS; any other is drawn in brown. No two shades are alike below 20.
    """
    colour, marker, first = ALGORITHMS.get(algorithm, OTHER)
    other, share = SHADES[shade % len(SHADES)]
    return Look(_mixed(colour, other, share), marker, LINES[(first + shade) % len(LINES)], filled=shade % 2 == 0)


def looks(algorithms: Mapping[str, str], *, shades: Mapping[str, int] | None = None) -> dict[str, Look]:
    """A look for every system: the first of an algorithm has its plain colour, the next ones the next shades.

    algorithms: system -> name of its algorithm, in the order of the legend
    shades: system -> shade of those whose place is fixed
    """
    families = {name: algorithm if algorithm in ALGORITHMS else "" for name, algorithm in algorithms.items()}
    chosen = {name: shade for name, shade in (shades or {}).items() if name in families}
    for name, family in families.items():
        if name not in chosen:
            taken = {shade for other, shade in chosen.items() if families[other] == family}
            chosen[name] = next(shade for shade in range(len(taken) + 1) if shade not in taken)
    return {name: look(algorithm, chosen[name]) for name, algorithm in algorithms.items()}


def _mixed(colour: str, other: str, share: float) -> str:
    """`colour` with `share` of `other` in it, both #RRGGBB."""
    pairs = [(int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(own * (1 - share) + mixed * share):02X}" for own, mixed in pairs)


def finish(axes: Axes, *, x: str, y: str) -> None:
    """Label the axes; the legend is the figure's."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)


@contextmanager
def panels(count: int, *, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with `rows` times `count` axes, row by row. `legend` adds the room for its legend."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width, height = PANEL
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's would change the bytes
        mpl.rcParams.update(RC)
        size = (ALONE if count == 1 else width * count, height * rows)
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        yield figure, list(figure.subplots(rows, count, squeeze=False).ravel())


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this size in inches, for what is no row of panels."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's would change the bytes
        mpl.rcParams.update(RC)
        yield Figure(figsize=(width, height), dpi=150, layout="constrained")


def svg_text(figure: Figure, *, name: str) -> str:
    """The figure as an `<svg>` element to stand in a page, as wide as the page allows; the same bytes each time.

    name: unlike that of any other figure of the page; its text is text, in whatever font the reader has
    """
    import io
    import re

    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    element = text.getvalue()[text.getvalue().index("<svg ") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    for size in ("width", "height"):
        element = re.sub(rf'^(<svg [^>]*?) ?{size}="[^"]*"', r"\1", element)
    # The names of clipping paths are made from all digits of a layout, whose last ones differ from run to run.
    for number, old in enumerate(dict.fromkeys(re.findall(r'<clipPath id="([^"]+)"', element))):
        new = f"{name}-{number}"
        element = element.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    return element.strip()


def legend(figure: Figure, entries: Mapping[str, Look], *, notes: Sequence[str] = (), markers: bool = True) -> None:
    """Put one legend below all panels, where it hides nothing, and make the figure higher by its height.

    entries: name -> look; a long name is wrapped, a very long one shortened
    notes: sentences above the names that explain bands, bars and dotted lines
    markers: whether any panel has markers
    """
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    columns = 2 if len(entries) > 4 or width > ALONE else 1
    room = max(10, int((width / columns - HANDLE) / CHARACTER))
    labels = [_wrapped(name, room) for name in entries]
    handles = [
        Line2D(
            [],
            [],
            color=own.colour,
            linestyle=own.line,
            marker=own.marker if markers else "",
            markerfacecolor=own.face,
            markersize=4.5,
        )
        for own in entries.values()
    ]
    title = "\n".join(line for note in notes for line in textwrap.wrap(note, int(width / CHARACTER) - 4))
    each = -(-len(labels) // columns)
    tallest = max(
        sum(2 * label.count("\n") + 3 for label in labels[start : start + each]) / 2
        for start in range(0, len(labels), each)
    )
    lines = tallest + (title.count("\n") + 2 if title else 0)
    figure.set_size_inches(width, height + LINE_HEIGHT * lines)
    drawn = figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=columns,
        fontsize=LEGEND_SIZE,
        title=title or None,
        title_fontsize=LEGEND_SIZE,
        alignment="left",
        handlelength=2.6,
        borderaxespad=0.3,
    )
    drawn.get_title().set_color("#444444")


def _wrapped(name: str, room: int) -> str:
    """The name in lines of at most `room` characters, broken behind commas where that suffices."""
    parts = name.split(", ")
    whole = name if max(map(len, parts)) >= room else ", ".join(part.replace(" ", "\u00a0") for part in parts)
    lines = textwrap.wrap(whole, room) or [name]
    if len(lines) > LARGEST_NUMBER_OF_LINES:
        lines = [*lines[: LARGEST_NUMBER_OF_LINES - 1], f"{lines[LARGEST_NUMBER_OF_LINES - 1][: room - 1]}…"]
    return "\n".join(lines)


def check_layout(figure: Figure) -> None:
    """Refuse a figure that nobody could read: panels without room, or a legend over them or beyond the edge.

    UserError says so, before anything is written.
    """
    refusal = UserError(
        "the legend and the labels leave no room for the panels, so no figure was written. Plot fewer systems "
        "at a time, for example the runs of one task."
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*constrained_layout not applied")
        try:
            for _ in range(2):  # the layout has settled after the second pass only
                figure.draw_without_rendering()
        except UserWarning as warning:
            raise refusal from warning
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        if axes.axison:
            place = axes.get_position()
            if place.width * width < SMALLEST[0] or place.height * height < SMALLEST[1]:
                raise refusal
    edge = figure.bbox.padded(1.0)
    for drawn in figure.legends:
        extent = drawn.get_window_extent()
        over = any(extent.overlaps(box) for axes in figure.axes if (box := axes.get_tightbbox()) is not None)
        if over or extent.x0 < edge.x0 or extent.x1 > edge.x1 or extent.y0 < edge.y0 or extent.y1 > edge.y1:
            raise refusal


def save(figure: Figure, base: Path, *, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write `base`.KIND for every kind, whole or not at all, without dates or program names; see `check_layout`."""
    check_layout(figure)
    base.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        path = base.with_name(f"{base.name}.{kind}")
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
            figure.savefig(temporary, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
        written.append(path)
    return written
