"""What `odist prepare` shows while it works: on standard error: a bar, or lines where that is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from odist.run.progress import Bars, Pace, duration

PLAIN_SECONDS = 5.0  # between two lines off a terminal
PACE_SECONDS = 1.0  # between two times that the time left is estimated
STEPS = {"unpack": "unpacking", "read": "reading", "tokenizer": "training the tokenizer", "encode": "encoding"}


class PrepareProgress:
    """The display of one preparation, called with its progress.

    speed: show a step's share and how much it does a second, instead of megabytes
    """

    def __init__(self, *, speed: bool = False) -> None:
        self._speed = speed
        self._bars = Bars() if sys.stderr.isatty() else None
        self._step = ""
        self._began = self._last = time.monotonic()
        self._pace, self._left = Pace(0), ""

    def __enter__(self) -> PrepareProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.close()

    def __call__(self, step: str, done: int, total: int, counts: Mapping[str, int], /) -> None:
        """Show the step, `done` of `total` (0: unknown), and the counts so far."""
        now, begins = time.monotonic(), step != self._step
        if begins:
            self._step, self._began, self._pace, self._left = step, now, Pace(total), ""
        if self._bars is not None:
            if now - self._last >= PACE_SECONDS:
                seconds = self._pace.left(done, now=now) if total else None
                self._last, self._left = now, "" if seconds is None else f"{duration(seconds)} left"
            amount, words = self._share(done, total), self._words(counts, now)
            self._bars.show(STEPS[step], done=done, total=total or None, amount=amount, left=self._left, words=words)
        elif (begins and self._speed) or now - self._last >= PLAIN_SECONDS:
            self._last = now
            parts = [f"{STEPS[step]} {self._share(done, total)}".rstrip(), self._words(counts, now)]
            print((" " if self._speed else ", ").join(filter(None, parts)), file=sys.stderr, flush=True)

    def _share(self, done: int, total: int) -> str:
        share = f"{100 * done / total:.0f} %" if total else ""
        return share if self._speed or not total else f"{share} of {total / 1e6:,.0f} MB"

    def _words(self, counts: Mapping[str, int], now: float) -> str:
        seconds = now - self._began
        shown = {f"{number:,} {what}": number for what, number in counts.items() if number or not self._speed}
        if not self._speed:
            return ", ".join(shown)
        return "; ".join(
            text + (f", {number / seconds:,.0f}/s" if seconds > 1 else "") for text, number in shown.items()
        )
