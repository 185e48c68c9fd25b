"""A preparation from request to report: the same for all data sets.

A data set is a subclass of `Preparation` that says its request, its steps, and its record and report. What is done once
for all of them: a finished store of the same request is reused, work lies in `<output>.partial` until it is whole, an
interrupted preparation continues where it stopped, and store.json is written last.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from odist.errors import Interrupted, UserError
from odist.prepare.partial import Partial, finished_record


class ShowProgress(Protocol):
    """Shows how far a step is: `done` of `total` (bytes or pieces; 0: unknown), and counts so far by name."""

    def __call__(self, step: str, done: int, total: int, counts: Mapping[str, int], /) -> None: ...


Stop = Callable[[], bool]  # polled; once true, the preparation keeps what is done and ends


class Report(Protocol):
    """What every report says; its fields without a default are kept in store.json.

    input_bytes, store_bytes: as they lie on the disk
    sources: identity of each input, and what was read of it
    seconds: of this call; reused: the store was there already
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    input_bytes: int
    store_bytes: int
    sources: list[dict[str, Any]]
    fingerprint: str
    fitted_fingerprint: str
    seconds: float
    reused: bool


OptionsT = TypeVar("OptionsT")
ReportT = TypeVar("ReportT", bound=Report)
Result = TypeVar("Result")


class Preparation(ABC, Generic[OptionsT, ReportT]):
    """One preparation of one data set.

    full_disk: what to do about a full disk, for the message
    resumable: errors of the user after which the same command continues
    """

    full_disk: ClassVar[str]
    resumable: ClassVar[tuple[type[UserError], ...]] = ()
    report_type: Callable[..., ReportT]

    def __init__(
        self,
        inputs: list[str],
        *,
        like: Path | None = None,
        options: OptionsT,
        progress: ShowProgress | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Find what `inputs` name. like: a store whose fitted parts are used. UserError for a wrong input or option."""
        self.options = options
        self.progress: ShowProgress = progress or _silent
        self.stop: Stop = stop or _never
        self.partial: Partial  # while the steps run
        self.stages: dict[str, float] = {}  # seconds of each step of this call
        self._began = time.monotonic()
        self.find(inputs, like)

    @abstractmethod
    def find(self, inputs: list[str], like: Path | None) -> None:
        """Resolve the options and find the sources, which the request needs; nothing is written yet."""

    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Return what is asked for, JSON-able: a store or unfinished work of another request is refused."""

    @abstractmethod
    def steps(self) -> Mapping[str, Callable[[], None]]:
        """Return the steps by name, in order; each finds out itself what of it is done already."""

    @abstractmethod
    def finish(self) -> tuple[dict[str, Any], ReportT]:
        """Write the last files but store.json; return the content of store.json and the report."""

    @abstractmethod
    def kept(self, step: str) -> str:
        """Say what an interruption in `step` keeps, for the message: "after 500 rows," ... "kept in FOLDER"."""

    def start(self, journal: dict[str, Any] | None) -> None:
        """Continue from the journal that an earlier call saved; None: nothing is done yet."""

    def journal(self) -> dict[str, Any]:
        """Return what `start` needs, JSON-able."""
        return {}

    @property
    def folder(self) -> Path:
        """Where the files of the store are written."""
        return self.partial.path

    @property
    def work(self) -> Path:
        """Where files lie that the store does not need."""
        return self.partial.work

    @property
    def seconds(self) -> float:
        """Seconds since the beginning of this call."""
        return time.monotonic() - self._began

    def save(self) -> None:
        """Write the journal; what it tells of must already be on the disk."""
        self.partial.save(self.journal())

    def poll(self) -> None:
        """Raise Interrupted if the preparation is to stop."""
        if self.stop():
            raise Interrupted("stopped")

    def run(self, output: Path) -> ReportT:
        """Make, continue or find finished the store `output`; a UserError leaves nothing behind (see `resumable`)."""
        output, request = output.expanduser().absolute(), self.request()
        record = finished_record(output, request)
        if record is None:
            with Partial(output, request=request, full_disk=self.full_disk, resumable=self.resumable) as partial:
                if not partial.complete:
                    self.partial = partial
                    return self._make()
                partial.publish()
            record = finished_record(output, request)
            assert record is not None
        return self.report_type(**record["report"], reused=True)

    def _make(self) -> ReportT:
        self.start(self.partial.journal)
        self.save()
        self.work.mkdir(exist_ok=True)
        step = ""
        try:
            for step, work in self.steps().items():
                self._timed(step, work)
            step = "join"
            record, report = self._timed(step, self.finish)
        except Interrupted:
            raise Interrupted(f"{self.kept(step)} kept in {self.folder}; the same command continues.") from None
        kept = {name: value for name, value in dataclasses.asdict(report).items() if name not in _of_this_call(report)}
        self.partial.commit({**record, "report": kept})
        report.seconds = round(self.seconds, 3)
        return report

    def _timed(self, name: str, work: Callable[[], Result]) -> Result:
        began = time.monotonic()
        result = work()
        self.stages[name] = round(time.monotonic() - began, 3)
        return result


def _of_this_call(report: Report) -> set[str]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(report)
    return {field.name for field in fields if (field.default, field.default_factory) != (missing, missing)}


def _silent(step: str, done: int, total: int, counts: Mapping[str, int], /) -> None:
    pass


def _never() -> bool:
    return False
