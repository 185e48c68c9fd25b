"""Prefetch of step -> batches: threads build the batches of coming steps while the model computes.

Batches are pure functions of the step, so the loader keeps no state that a resume could miss; asking
twice for a step gives equal batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """Batches by step, the next few prepared ahead.

    build: step -> batches of that step, one per virtual worker
    num_steps: steps of the run; nothing is prepared beyond
    prefetch: steps prepared ahead; 0 builds in the caller's thread
    keep: built steps kept for a second reader (a teacher that looks ahead)
    builders: threads that build, each a step, so that none of the threads which they use waits for the last part of a batch
    """

    def __init__(
        self, build: Callable[[int], T], *, num_steps: int, prefetch: int = 2, keep: int = 1, builders: int = 1
    ) -> None:
        self.build = build
        self.num_steps = num_steps
        self.prefetch = prefetch
        self.keep = max(1, keep)
        self._pool = ThreadPoolExecutor(builders, thread_name_prefix="loader") if prefetch else None
        self._ready: OrderedDict[int, Future[T]] = OrderedDict()

    def __getitem__(self, step: int) -> T:
        for wanted in range(step, min(step + self.prefetch + 1, self.num_steps)):
            if wanted not in self._ready:
                self._ready[wanted] = self._start(wanted)
        self._ready.move_to_end(step)
        result = self._ready[step].result()
        while len(self._ready) > self.prefetch + self.keep:
            oldest = min(self._ready)
            if oldest >= step:
                break
            del self._ready[oldest]
        return result

    def _start(self, step: int) -> Future[T]:
        if self._pool is not None:
            return self._pool.submit(self.build, step)
        future: Future[T] = Future()
        future.set_result(self.build(step))
        return future

    def close(self) -> None:
        """Stop the threads, without waiting for what they are building."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
