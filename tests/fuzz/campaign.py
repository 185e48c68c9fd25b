"""Runs cases in processes of their own, watches them and counts what came of them.

What a case does and what would be wrong about its result is left to the targets (snapshots.py, checkpoints.py, rows.py,
text.py, images.py). A case is named TARGET/KIND/SEED and is the same again under the same name.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

TARGETS = ("snapshots", "checkpoints", "rows", "text", "images")
OUTCOMES = ("rejected", "harmless", "exceptions", "hangs", "wrong uses", "files outside", "memory")
FAILURES = OUTCOMES[2:]
SECONDS_A_CASE = 150.0  # of wall time, on a busy machine too
SECONDS_TO_START = 120.0  # of a process, with its libraries
BYTES_A_CASE = 400 << 20  # by which the resident size may grow
BYTES_A_PROCESS = 4 << 30  # of private memory: a bomb ends as MemoryError and not as a machine that swaps


class WrongUse(Exception):
    """A target found that something was used, or lost, that should not have been."""


class Hang(BaseException):  # no `except Exception` may swallow it
    """A case took longer than SECONDS_A_CASE."""


@dataclass(frozen=True)
class Case:
    """One hostile input: which target meets which kind of damage, drawn from which seed."""

    target: str
    kind: str
    seed: int

    @classmethod
    def named(cls, name: str) -> Case:
        target, kind, seed = name.split("/")
        return cls(target, kind, int(seed))

    def __str__(self) -> str:
        return f"{self.target}/{self.kind}/{self.seed}"


@dataclass(frozen=True)
class Result:
    """What came of a case: one of OUTCOMES, and for a failure what happened."""

    case: Case
    outcome: str
    detail: str = ""


def cases_of(target: str, *, count: int, seed: int = 0) -> list[Case]:
    """So many cases of a target, every kind in turn."""
    kinds = list(importlib.import_module(f"fuzz.{target}").KINDS)
    return [Case(target, kinds[index % len(kinds)], seed + index) for index in range(count)]


def run(
    cases: Sequence[Case],
    *,
    jobs: int = 1,
    seconds: float = SECONDS_A_CASE,
    say: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run the cases in `jobs` processes; a process that dies or stays away costs its case and is replaced.

    seconds: that a case may take; say: told of every result
    """
    context = multiprocessing.get_context("spawn")
    results: list[Result] = []
    left = [list(cases[job::jobs]) for job in range(jobs)]
    workers = [_Worker(context, part, seconds) for part in left if part]
    while workers:
        wait([worker.connection for worker in workers], timeout=1.0)
        for worker in list(workers):
            for result in worker.news():
                results.append(result)
                say(result)
            if worker.done:
                workers.remove(worker)
            elif (lost := worker.lost()) is not None:
                results.append(lost)
                say(lost)
                workers.remove(worker)
                if worker.left:
                    workers.append(_Worker(context, worker.left, seconds))
    return results


class _Worker:
    """A process that works through a list of cases."""

    def __init__(self, context: Any, cases: list[Case], seconds: float) -> None:
        self.seconds = seconds
        self.left = list(cases)
        self.done = False
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(self.left, theirs, seconds), daemon=True)
        self.process.start()
        theirs.close()
        self._heard = time.monotonic() + SECONDS_TO_START

    def news(self) -> list[Result]:
        found: list[Result] = []
        try:
            while self.connection.poll():
                result = self.connection.recv()
                self._heard = time.monotonic()
                if isinstance(result, str):
                    raise RuntimeError(result)
                if result is None:
                    self.process.join()
                    self.done = True
                    break
                self.left.remove(result.case)
                found.append(result)
        except EOFError:
            self.process.join(5)
        return found

    def lost(self) -> Result | None:
        """What a process that ended, or that no alarm can wake, says about the case it was at."""
        if self.process.is_alive() and time.monotonic() < self._heard + 2 * self.seconds:
            return None
        alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        case = self.left.pop(0)
        if alive:
            return Result(case, "hangs", "the process did not answer and was killed")
        return Result(case, "exceptions", f"the process ended with {self.process.exitcode}")


def _work(cases: list[Case], connection: Connection, seconds: float) -> None:
    """The process's entry."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES_A_PROCESS, BYTES_A_PROCESS))
    signal.signal(signal.SIGALRM, _alarm)
    root = Path(tempfile.mkdtemp(prefix="odist-fuzz-"))
    os.chdir(root)
    try:
        targets: dict[str, Any] = {}
        for case in cases:
            if case.target not in targets:
                try:
                    module = importlib.import_module(f"fuzz.{case.target}")
                    targets[case.target] = module.Target(root / f"of-{case.target}")
                except Exception:
                    connection.send(f"{case.target} cannot be set up:\n{traceback.format_exc()}")
                    return
            connection.send(_run(case, targets[case.target], root, seconds))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    connection.send(None)
    connection.close()
    os._exit(0)  # threads that a failed case left must not keep the process


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def _run(case: Case, target: Any, root: Path, seconds: float) -> Result:
    folder = root / "case"
    (folder / "in").mkdir(parents=True)
    canary = folder / "beside"
    canary.write_text("untouched")
    before = _beside(root)
    _reset_peak()
    resident = _resident("VmRSS")
    threads = threading.active_count()
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            outcome, detail = target.run(case.kind, random.Random(str(case)), folder / "in"), ""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome not in OUTCOMES:
            raise ValueError(f"no outcome: {outcome!r}")
        if not _eventually(lambda: threading.active_count() <= threads):
            left = ", ".join(thread.name for thread in threading.enumerate())
            outcome, detail = "hangs", f"threads do not end: {left}"
    except WrongUse as error:
        outcome, detail = "wrong uses", str(error)
    except Hang:
        outcome, detail = "hangs", traceback.format_exc()
    except Exception:
        outcome, detail = "exceptions", traceback.format_exc()
    if outcome in ("rejected", "harmless"):
        grown = _resident("VmHWM") - resident
        if grown > BYTES_A_CASE:
            outcome, detail = "memory", f"{grown >> 20} MiB"
        if (after := _beside(root)) != before or canary.read_text() != "untouched":
            outcome, detail = "files outside", ", ".join(sorted(after ^ before)) or str(canary)
    shutil.rmtree(folder, ignore_errors=True)
    return Result(case, outcome, detail)


def _beside(root: Path) -> set[str]:
    """What lies in the process's folder outside the case's own."""
    return {str(path.relative_to(root)) for path in [*root.iterdir(), *(root / "case").iterdir()]}


def _eventually(question: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # no Linux, or not allowed: the peak is that of the whole process


def _resident(name: str) -> int:
    """A size of this process in bytes, from the system's table; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)


def table(results: Sequence[Result]) -> str:
    """Counts by target and kind, a line each, and their sums."""
    rows: dict[str, Counter[str]] = {}
    for result in results:
        for name in (f"{result.case.target}: {result.case.kind}", f"{result.case.target}, all", "all"):
            rows.setdefault(name, Counter())[result.outcome] += 1
    order = {target: place for place, target in enumerate(TARGETS)}
    ordered = sorted(
        rows, key=lambda name: (order.get(name.split(":")[0].split(",")[0], 9), name.endswith("all"), name)
    )
    width = max(len(name) for name in rows)
    head = f"{'kind':{width}}  {'tried':>6}" + "".join(f"  {name:>{max(6, len(name))}}" for name in OUTCOMES)
    lines = [head, "-" * len(head)]
    for name in ordered:
        counts = rows[name]
        cells = "".join(f"  {counts[outcome]:>{max(6, len(outcome))}}" for outcome in OUTCOMES)
        lines.append(f"{name:{width}}  {counts.total():>6}{cells}")
    return "\n".join(lines)


def failures(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.outcome in FAILURES]


def strict_json(content: Any) -> str:
    """As JSON that any reader takes; ValueError for NaN and infinities."""
    return json.dumps(content, allow_nan=False)
