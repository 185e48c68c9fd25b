"""Forwards the rows of a run to the trackers that `run.sinks=[NAME,...]` chooses.

A sink gets every row of metrics.jsonl from a thread that reads the file, so training neither waits for it nor fails
with it, whether the run has one process or many. The byte that a sink has reached is kept in `sinks/` of the run
folder: a continued run forwards what is new, so rows that are written again after a checkpoint come twice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from odist import registry
from odist.config.suggest import choose
from odist.errors import UserError
from odist.files import Tail, write_atomically
from odist.run.folder import Run, is_row

SINKS = {
    "tensorboard": "odist.run.trackers:TensorBoard",
    "wandb": "odist.run.trackers:Wandb",
    "mlflow": "odist.run.trackers:MLflow",
}
SECONDS = 1.0  # between two looks into metrics.jsonl
SECONDS_TO_CLOSE = 60.0  # for all sinks at the end of a run, before it goes on without them


class Sink(Protocol):
    """Takes rows of one run. Made and called in a thread of its own; may raise anything.

    requires: package that must be importable
    """

    requires: str

    def __init__(self, run: Run) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self, *, finished: bool) -> None: ...


def check(names: Sequence[str]) -> None:
    """Refuse unknown sinks and those whose package is missing; UserError says what to type."""
    known = registry.names("sinks")
    for name in names:
        if name not in known:
            raise UserError(f"run.sinks=[{','.join(names)}]: {choose(name, list(known))}")
        package = registry.find("sinks", name).requires
        if importlib.util.find_spec(package) is None:
            install = f"odist[{name}]" if name in SINKS else package
            raise UserError(
                f"run.sinks=[{','.join(names)}]: {name} needs the package {package}, which is not "
                f"installed: pip install '{install}'"
            )


@contextlib.contextmanager
def forwarding(run: Run, names: Sequence[str]) -> Iterator[None]:
    """Forward the rows of a run to its sinks inside the block; at its end wait until they have them all."""
    threads = [Forwarder(run, name) for name in dict.fromkeys(names)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.ended.set()
        deadline = time.monotonic() + SECONDS_TO_CLOSE
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _warn(
                    f"sink {thread.sink_name} did not end within {SECONDS_TO_CLOSE:.0f} s and may lack the last rows."
                )


class Forwarder(threading.Thread):
    """Reads metrics.jsonl as it grows and hands each new row to one sink, until `ended` is set."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(name=f"sink-{name}", daemon=True)
        self.folder = run
        self.sink_name = name
        self.ended = threading.Event()
        self.place_file = run.path / "sinks" / f"{name}.json"

    def run(self) -> None:
        try:
            self._forward()
        except Exception as error:  # whatever a tracker does, the run goes on
            text = (str(error) or type(error).__name__).splitlines()[0]
            _warn(f"sink {self.sink_name} is switched off: {type(error).__name__}: {text}")

    def _forward(self) -> None:
        sink: Sink = registry.find("sinks", self.sink_name)(self.folder)
        tail = Tail(self.folder.path / "metrics.jsonl", place=self._known_place())
        last = False
        while not last:
            last, before = self.ended.wait(SECONDS), tail.place
            for row in filter(is_row, tail.objects()):
                sink.write(row)
            if tail.place > before:
                sink.flush()
                write_atomically(self.place_file, json.dumps({"bytes": tail.place}) + "\n")
        sink.close(finished=self.folder.finished)

    def _known_place(self) -> int:
        self.place_file.parent.mkdir(exist_ok=True)
        if not self.place_file.is_file():
            return 0
        return int(json.loads(self.place_file.read_text(encoding="utf-8"))["bytes"])


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
