"""Jobs in several processes or in this one, with progress from inside a job and a way to stop.

Not concurrent.futures: its workers get no queue and no event without global variables, it cannot end one that hangs,
and it does not tell how a worker died.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from odist.errors import Interrupted, OdistError, UserError

POLL = 0.2  # seconds
SECONDS_TO_END = 10.0  # that a worker may take to stop
Item = TypeVar("Item")
Tell = Callable[[int, int, int], None]  # bytes, records and tokens done since the last call; may raise to stop


class _Stopped(Exception):
    """A worker was asked to stop."""


def run_jobs(
    job: Callable[[Item, Tell], None],
    items: Sequence[Item],
    *,
    processes: int,
    progress: Tell,
    stop: Callable[[], bool],
) -> None:
    """Call `job(item, tell)` for each item, in this process if one is enough.

    job, items: picklable when processes > 1
    progress: called in this process with what the jobs tell
    stop: polled several times a second
    Raises Interrupted when stopped, what a job raised, and OdistError when a worker died.
    """
    if min(processes, len(items)) <= 1:

        def tell(num_bytes: int, records: int, tokens: int) -> None:
            if stop():
                raise Interrupted("stopped")
            progress(num_bytes, records, tokens)

        for item in items:
            tell(0, 0, 0)
            job(item, tell)
        return
    _run_processes(job, items, min(processes, len(items)), progress=progress, stop=stop)


def _run_processes(job: Any, items: Sequence[Any], count: int, *, progress: Tell, stop: Callable[[], bool]) -> None:
    context = multiprocessing.get_context("spawn")
    jobs, results, stopping = context.SimpleQueue(), context.Queue(), context.Event()
    workers = [context.Process(target=_work, args=(job, jobs, results, stopping), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    left, waiting, sent = len(items), list(items), 0
    try:
        while left:
            # Few jobs lie in the pipe at once, so that it never fills up.
            while waiting and sent < 2 * count:
                jobs.put(waiting.pop(0))
                sent += 1
            if stop():
                raise Interrupted("stopped")
            try:
                kind, value = results.get(timeout=POLL)
            except queue.Empty:
                dead = [worker for worker in workers if not worker.is_alive()]
                if dead:
                    raise OdistError(
                        f"a worker process ended with code {dead[0].exitcode} (-9: often out of memory); the same "
                        "command continues, --processes 1 takes less memory."
                    ) from None
                continue
            if kind == "done":
                left, sent = left - 1, sent - 1
            elif kind == "error":
                raise value
            else:
                progress(*value)
    finally:
        _end(workers, jobs, stopping)


def _end(workers: list[Any], jobs: Any, stopping: Any) -> None:
    stopping.set()
    for worker in workers:
        if worker.is_alive():
            jobs.put(None)
    limit = time.monotonic() + SECONDS_TO_END
    for worker in workers:
        worker.join(max(0.1, limit - time.monotonic()))
        if worker.is_alive():
            worker.terminate()
            worker.join()


def _work(job: Any, jobs: Any, results: Any, stopping: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tell(*done: int) -> None:
        if stopping.is_set():
            raise _Stopped
        if any(done):
            results.put(("progress", done))

    while (item := jobs.get()) is not None and not stopping.is_set():
        try:
            job(item, tell)
        except _Stopped:
            break
        except Exception as error:
            known = isinstance(error, UserError | OSError)
            results.put(("error", error if known else OdistError(f"{item}: {error!r}")))
            break
        results.put(("done", None))
    if stopping.is_set():
        results.cancel_join_thread()  # nobody reads any more
