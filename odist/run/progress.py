"""The bars that a person sees on a terminal while something long runs: training, runs of a recipe, preparing data."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST_BAR, SHORTEST_BAR = 40, 8  # columns
INDENT = "  "  # before the words under a bar


@dataclass
class _Bar:
    done: float
    total: float | None
    amount: str
    left: str
    words: str


class Bars:
    """A line for each task: its name, a bar, how far it is, the time left; and words about it in a line below, if any."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._bars: dict[str, _Bar] = {}
        self._console = Console(stderr=True)
        self._live = Live(get_renderable=self._lines, console=self._console)
        self._live.start()

    @property
    def room(self) -> int:
        """Characters of words that have room in a line."""
        return self._console.width - len(INDENT)

    def show(
        self, name: str, *, done: float, total: float | None, amount: str = "", left: str = "", words: str = ""
    ) -> None:
        """Show a task, a new one below the others.

        done, total: length of the bar, in any unit; it moves to and fro while the total is unknown (None)
        amount: what is done, in words; left: the time that it still takes, in words
        """
        self._bars[name] = _Bar(done, total, amount, left, words)

    def remove(self, name: str) -> None:
        """Take a task away."""
        del self._bars[name]

    def say(self, text: str) -> None:
        """Print a line above the bars, where it stays."""
        self._live.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._live.stop()

    def _lines(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bars = dict(self._bars)
        names = max((len(name) for name in bars), default=0)
        amounts = max((len(bar.amount) for bar in bars.values()), default=0)
        lefts = max((len(bar.left) for bar in bars.values()), default=0)
        width = max(SHORTEST_BAR, min(LONGEST_BAR, self._console.width - names - amounts - lefts - 3))
        lines: list[RenderableType] = []
        for name, bar in bars.items():
            line = Table.grid(padding=(0, 1))
            moving = bar.total is None
            length = ProgressBar(total=bar.total or 1, completed=bar.done, width=width, pulse=moving)
            line.add_row(Text(name.ljust(names), style="bold"), length, bar.amount.rjust(amounts), bar.left)
            lines.append(line)
            if bar.words:
                lines.append(Text(f"{INDENT}{bar.words}", no_wrap=True))
        return Group(*lines)


class Pace:
    """How long something still takes, from the last times at which it was asked; what is continued counts from there.

    total: what is to be done, in any unit, such as steps
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self._seen: deque[tuple[float, float]] = deque(maxlen=20)

    def left(self, done: float, *, now: float) -> float | None:
        """Seconds to the end, once so much is done at the time `now` (seconds); None until it was asked twice."""
        self._seen.append((now, done))
        (began, first), (_, last) = self._seen[0], self._seen[-1]
        return (now - began) / (last - first) * (self.total - last) if last > first else None


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
