"""When a run is to save and end: after a signal or a file that asks for it, at one and the same step everywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odist.mesh import Mesh

STOPPING = "stopping after this step (Ctrl-C again: at once, unsaved)"


class Stop:
    """Becomes true when the run should save and end: after a signal, or when `file` exists (one for a multirun).

    silent: another process tells the user
    """

    def __init__(self, file: Path | None = None, *, silent: bool = False) -> None:
        self.file = file
        self.silent = silent
        self.requested = False
        self.owner = os.getpid()
        self._first = 0.0
        self._to_say = False

    def __call__(self) -> bool:
        if self._to_say:
            self._to_say = False
            print(STOPPING, file=sys.stderr, flush=True)
        return self.requested or (self.file is not None and self.file.exists())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "requested": False}

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Take SIGINT and SIGTERM as requests inside the block; only the main thread can."""
        try:
            before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # a thread of some launcher; the main thread listens and leaves the file
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # A terminal and a parent process may both send one, so a second counts only later, and only Ctrl-C.
        if self.requested and number == signal.SIGINT and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
            with contextlib.suppress(OSError):
                if self.silent:
                    pass
                elif os.getpid() == self.owner and sys.stderr is sys.__stderr__:
                    os.write(2, f"\n{STOPPING}\n".encode())
                else:  # bars are on the screen: the next call prints it above them
                    self._to_say = os.getpid() == self.owner
                if self.file is not None:
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                    self.file.touch()
        if os.getpid() == self.owner and "submitit" in sys.modules:
            raise KeyboardInterrupt  # submitit waits for its jobs only so, and forwards the signal to them


class AgreedStop:
    """One answer per step for all groups of a process and all processes of a group, whenever the signal comes.

    Several processes agree by the counts of their next step, or by a message of their own if the strategy has none.
    """

    def __init__(self, stop: Callable[[], bool], mesh: Mesh) -> None:
        self._stop = stop
        self._mesh = mesh
        self._step = -1
        self._answer = False

    def __call__(self, step: int) -> bool:
        if step != self._step:
            flag, self._step = self._mesh.stop, step
            flag.wanted = self._stop()
            self._answer = self._mesh.any(flag.wanted) if flag.heard is None else flag.heard
            flag.heard = None
            if self._mesh.across is not None:
                self._answer = self._mesh.across.any(self._answer)
        return self._answer
