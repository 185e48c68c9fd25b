"""What a run says while it trains: rows in metrics.jsonl, and progress on the terminal.

Rows are for machines and always written; progress is a bar per group on a terminal and plain lines
elsewhere. Which numbers there are is left to the trainer.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import IO, Any, Protocol

from odist.run import Run

SPARKS = "▁▂▃▄▅▆▇█"
PLAIN_SECONDS = 10.0  # between two plain lines of a group


class Progress(Protocol):
    """Shows the state of each group."""

    def update(self, group: int, row: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends rows to metrics.jsonl and passes them on to the progress display.

    run: where the file lies, shared by the groups' processes, each row one write; progress: may show nothing
    """

    def __init__(self, run: Run, *, progress: Progress) -> None:
        self.path = run.path / "metrics.jsonl"
        self.progress = progress
        torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        if torn:  # half a line of a killed process: end it, so that it spoils no other
            self._file.write("\n")

    def write(self, kind: str, *, group: int, **values: Any) -> None:
        """Write one row; floats that are no finite numbers become null."""
        row = {"kind": kind, "group": group, **values, "time": round(time.time(), 3)}
        clean = {key: _finite(value) for key, value in row.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        self.progress.update(group, clean)

    def close(self) -> None:
        self._file.close()
        self.progress.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Silent:
    """Shows nothing."""

    def update(self, group: int, row: dict[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def describe(row: dict[str, Any]) -> str:
    """A row's numbers in a few words."""
    if row["kind"] == "evaluate":
        shown = [
            f"{key} {row[key]:.4f}" for key in ("log_loss", "cross_entropy", "auc", "top1") if row.get(key) is not None
        ]
        return "validation " + ", ".join(shown)
    words = [f"loss {row['label_loss']:.4f}" if row.get("label_loss") is not None else "loss -"]
    if row.get("distill_loss") is not None:
        words.append(f"distillation {row['distill_loss']:.4f}")
    if row.get("teacher_age_steps") is not None:
        words.append(f"teacher {row['teacher_age_steps']} steps old")
    if row.get("examples_per_second"):
        words.append(f"{row['examples_per_second']:,.0f} examples/s")
    return ", ".join(words)


class PlainProgress:
    """One line now and then, for logs and pipes."""

    def __init__(self, *, num_groups: int, num_steps: int) -> None:
        self.num_steps = num_steps
        self._last = dict.fromkeys(range(num_groups), 0.0)

    def update(self, group: int, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if row["kind"] == "evaluate" or now - self._last[group] >= PLAIN_SECONDS:
            self._last[group] = now
            print(f"group {group} step {row['step']}/{self.num_steps}: {describe(row)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class LiveProgress:
    """A bar per group with its loss, the loss's course, the teacher's age, speed and time left."""

    def __init__(self, *, num_groups: int, num_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("[bold]group {task.fields[group]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[course]} {task.fields[words]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks = [
            self._bars.add_task("", total=num_steps, group=group, words="", course="") for group in range(num_groups)
        ]
        self._losses: list[list[float]] = [[] for _ in range(num_groups)]
        self._bars.start()

    def update(self, group: int, row: dict[str, Any]) -> None:
        if row["kind"] == "evaluate":
            self._bars.console.print(f"group {group} step {row['step']}: {describe(row)}", highlight=False)
            return
        if row.get("label_loss") is not None:
            self._losses[group].append(row["label_loss"])
        course = sparkline(self._losses[group][-16:])
        self._bars.update(self._tasks[group], completed=row["step"], words=describe(row), course=course)

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)

    def close(self) -> None:
        self._bars.stop()


def sparkline(values: list[float]) -> str:
    """Draw values as a line of block characters, lowest to highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in values)


def make_progress(*, show: bool, num_groups: int, num_steps: int) -> Progress:
    """The display that suits the place: bars on a terminal, lines elsewhere, nothing if not wanted."""
    if not show:
        return Silent()
    kind = LiveProgress if sys.stderr.isatty() else PlainProgress
    return kind(num_groups=num_groups, num_steps=num_steps)
