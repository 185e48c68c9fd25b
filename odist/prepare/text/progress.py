"""Progress of a text preparation for a person: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_SECONDS = 5.0
WORDS = {"read": "reading", "tokenizer": "training the tokenizer", "encode": "encoding"}


class TextProgress:
    """Shows step, share done, documents/s and tokens/s, on standard error."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._task: Any = None
        self._step = ""
        self._began = self._last = time.monotonic()

    def __enter__(self) -> TextProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                       TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
            self._bars = Progress(*columns, console=Console(stderr=True))
            self._task = self._bars.add_task("", total=None, speed="")
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, step: str, done: int, total: int, documents: int, tokens: int) -> None:
        """As the preparation calls it: `done` of `total` (0: unknown), documents and tokens of this call."""
        begins = step != self._step
        if begins:
            self._step, self._began = step, time.monotonic()
        speed = "; ".join(self._rate(n, what) for n, what in ((documents, "documents"), (tokens, "tokens")) if n)
        if self._bars is not None:
            self._bars.update(self._task, description=WORDS[step], completed=done, total=total or None, speed=speed)
        elif begins or time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            share = f" {100 * done / total:.0f} %" if total else ""
            print(f"{WORDS[step]}{share} {speed}".rstrip(), file=sys.stderr, flush=True)

    def _rate(self, number: int, what: str) -> str:
        seconds = time.monotonic() - self._began
        return f"{number:,} {what}" + (f", {number / seconds:,.0f}/s" if seconds > 1 else "")
