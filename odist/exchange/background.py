"""A thread for work that may hang for ever: a store whose server is gone, a mount that is dead.

Unlike those of `concurrent.futures`, its thread never keeps a process from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Does jobs one after another in a thread of its own, which starts with the first of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._started = False

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do `job` when those before it are done; the future has its result or its error."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name=self.name, daemon=True).start()
        return future

    def close(self) -> None:
        """End the thread after the jobs that it has; waits for nothing."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            future, job = task
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del task, future, job  # a job may hold weights
