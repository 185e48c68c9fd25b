"""The duty of rank 0: the other processes of its job are told what to do, however its own command ends."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from odist.errors import Interrupted, OdistError
from odist.launch.ranks import Ranks

if TYPE_CHECKING:
    from odist.launch.job import Job


class Leading:
    """Tells the other processes to leave if the block ends before they were given an order; torch is loaded when needed."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._job: Job | None = None

    def job(self) -> Job:
        """This process's end of its job."""
        if self._job is None:
            from odist.launch.job import Job

            self._job = Job(self.ranks)
        return self._job

    def __enter__(self) -> Leading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ranks.size == 1 or (self._job is not None and self._job.ordered):
            return
        code = 0 if error is None else 1
        if isinstance(error, OdistError):
            code = error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            code = Interrupted.exit_code
        elif isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        self.job().dismiss(code)
