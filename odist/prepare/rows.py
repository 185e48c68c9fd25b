"""What the preparations of click rows share: how far they have come, and the record and report of a store of rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from odist.data.rows import FORMAT, RowStore
from odist.data.store import fingerprint_of
from odist.errors import UserError
from odist.prepare.inputs import InputFile
from odist.prepare.job import OptionsT, Preparation, ReportT
from odist.prepare.options import SPLITTING


@dataclass
class RowState:
    """How far a preparation has come: what the journal keeps."""

    source: int = 0  # files finished
    offset: int = 0  # within the next one, as its blocks count
    lines: int = 0  # of that file, finished
    rows: int = 0  # good rows, all files
    source_rows: list[int] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)
    bad_locations: list[str] = field(default_factory=list)
    fitted: dict[str, Any] | None = None  # once fitted, rows may already be changed in place

    @classmethod
    def of(cls, journal: dict[str, Any]) -> Self:
        """Read the state from a journal; keys that only earlier versions knew are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in journal.items() if name in known})


StateT = TypeVar("StateT", bound=RowState)


class RowPreparation(Preparation[OptionsT, ReportT], Generic[OptionsT, ReportT, StateT]):
    """A preparation of rows. choices: the options with nothing left open; `state` is the only thing that changes."""

    choices: Any
    state: StateT

    def open_like(self, like: Path | None) -> RowStore | None:
        """The store whose fitted parts are used. Raises UserError where numba is missing, or it is no store."""
        if importlib.util.find_spec("numba") is None:
            raise UserError("the preparation of rows needs numba, which is not installed. Type: pip install numba")
        return None if like is None else RowStore.open(like)

    def start(self, journal: dict[str, Any] | None) -> None:
        if journal is not None:
            self.state = type(self.state).of(journal)

    def journal(self) -> dict[str, Any]:
        return asdict(self.state)

    def kept(self, step: str) -> str:
        return f"after {self.state.rows:,} rows,"

    def what_was_read(self, sources: Sequence[InputFile]) -> dict[str, Any]:
        """What the report says of what was read, and what it made."""
        state = self.state
        return {
            "bad_rows": state.bad,
            "bad_locations": state.bad_locations,
            "input_bytes": sum(source.bytes for source in sources),
            "store_bytes": self.partial.num_bytes(),
            "sources": [{**s.identity(), "rows": n} for s, n in zip(sources, state.source_rows, strict=True)],
        }

    def fingerprints(self, meaning: Sequence[str], content: dict[str, Any]) -> dict[str, Any]:
        """The fingerprints of the store and of what was fitted.

        meaning: options, beside those of the split, that change what rows mean; content: rows and their digests
        """
        options = asdict(self.choices)
        chosen = {name: options[name] for name in (*meaning, *SPLITTING)}
        if chosen["split"] != "random":
            chosen["split_seed"] = None  # has no effect
        whole = {"format": FORMAT, "task": "criteo", **content, "options": chosen, "fitted": self.state.fitted}
        return {"fingerprint": fingerprint_of(whole), "fitted_fingerprint": fingerprint_of(self.state.fitted)}

    def record(self, report: ReportT, **own: Any) -> dict[str, Any]:
        """The content of store.json. own: columns, splits and what else the preparation says"""
        return {
            "format": FORMAT,
            "task": "criteo",
            "fingerprint": report.fingerprint,
            "fitted_fingerprint": report.fitted_fingerprint,
            **own,
            "fitted": self.state.fitted,
            "options": asdict(self.choices),
        }
