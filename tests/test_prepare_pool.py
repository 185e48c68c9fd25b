"""Jobs in real processes: progress from inside, errors, a stop, and a worker that is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from odist.errors import Interrupted, OdistError, UserError
from odist.prepare.pool import Tell, run_jobs


def count(item: int, tell: Tell) -> None:
    for _ in range(item):
        tell(10, 1, 0)


def refuse(item: int, tell: Tell) -> None:
    if item == 2:
        raise UserError("item 2 is bad")


def die(item: int, tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_until_stopped(item: int, tell: Tell) -> None:
    while True:
        tell(1, 0, 0)
        time.sleep(0.01)


def run(job: Callable[[int, Tell], None], *, processes: int, stop: Callable[[], bool] = lambda: False) -> list[int]:
    told = [0, 0, 0]

    def progress(*done: int) -> None:
        told[:] = [a + b for a, b in zip(told, done, strict=True)]

    run_jobs(job, [1, 2, 3, 4], processes=processes, progress=progress, stop=stop)
    return told


@pytest.mark.parametrize("processes", [1, 2])
def test_what_jobs_tell_adds_up(processes: int) -> None:
    assert run(count, processes=processes) == [100, 10, 0]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_a_job_is_raised(processes: int) -> None:
    with pytest.raises(UserError, match="item 2 is bad"):
        run(refuse, processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_reaches_jobs_that_are_at_work(processes: int) -> None:
    polled = iter(range(5))
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run(work_until_stopped, processes=processes, stop=lambda: next(polled, None) is None)
    assert time.monotonic() - began < 8  # a worker that does not stop is ended after ten seconds


def test_a_killed_worker_is_told_with_its_exit_code() -> None:
    with pytest.raises(OdistError, match=r"a worker process ended with code -9 .*the same command continues"):
        run(die, processes=2)
