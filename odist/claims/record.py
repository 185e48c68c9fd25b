"""Records of runs and of trials: all that a report is made of, one JSON object a line.

    reports/NAME/runs.jsonl     one `Record` a finished run
                 tuning.jsonl   one `Trial` a run of the tuning

A record is free of paths and dates, and complete: a report can be made again, byte for byte, when the run folders are
long gone. Lines stand in the order of their names, in canonical JSON (sorted keys, no spaces): the same records are
the same bytes, and one more record is one more line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from odist.config.typed import Reader
from odist.errors import UserError
from odist.files import alone, json_objects, write_atomically
from odist.run.damage import SET_ASIDE

RUNS_FILE = "runs.jsonl"
TRIALS_FILE = "tuning.jsonl"
MEAN = -1  # the number that evaluations give to the mean prediction of the groups
Metrics = dict[str, Any]  # name -> number, None where it is not finite; `NAME_interval` -> [low, high]


@dataclass(frozen=True)
class Line:
    """What the lines of both files share: which run of which recipe it is, and where it ran.

    env: commit, source_hash, versions, hardware, data_fingerprint and config_hash of the run
    """

    FORMAT: ClassVar[str]
    NEWER: ClassVar[tuple[str, ...]] = ()  # fields that older lines lack; not written while they are empty

    system: str
    seed: int
    variant: str = ""
    recipe: str = ""
    scale: str = ""
    env: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the line in its file."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        """The line, without its end."""
        content = {own.name: getattr(self, own.name) for own in dataclasses.fields(self)}
        for name in [name for name in self.NEWER if not content[name]]:
            del content[name]
        return json.dumps({"format": self.FORMAT, **content}, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Record(Line):
    """One finished run.

    config: its configuration, nested, without places; results: its results.json; evaluations: rows without dates
    churn: seed of another retrain of the system -> PAIR_METRICS of the two; predicted_rows: fingerprint of the rows
    churn_of_models: the same, the mean over the pairs of a model of this run with one of the other; empty for single
        models
    churn_against: number of a group, or MEAN of all where that predicts -> PAIR_METRICS of its predictions and those of the
        system that the recipe names with `churn_against`
    setting: of a run of the recipe's frontier, such as `lr0.02`; empty for those of the tables
    """

    FORMAT = "odist-record-1"
    NEWER = ("churn_of_models", "setting", "churn_against")

    config: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    churn: dict[str, dict[str, float | None]] = field(default_factory=dict)
    predicted_rows: str = ""
    churn_of_models: dict[str, dict[str, float | None]] = field(default_factory=dict)
    setting: str = ""
    churn_against: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.variant, self.system, self.setting, f"s{self.seed}") if part)

    @property
    def metrics(self) -> Metrics:
        """The metrics of what predicts for the run."""
        metrics: Metrics = self.results["metrics"]
        return metrics

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What each group reported at its end."""
        groups: list[dict[str, Any]] = self.results.get("groups", [])
        return groups


@dataclass(frozen=True)
class Trial(Line):
    """One run of a tuning.

    key, value: the setting that is tuned; config: by dotted key, without places
    state: as in the run's status.json; metrics: None unless it finished
    """

    FORMAT = "odist-trial-1"

    key: str = ""
    value: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    state: str | None = None
    metrics: Metrics | None = None

    @property
    def name(self) -> str:
        setting = f"{self.key.rsplit('.', 1)[-1]}{self.value:g}"
        return "-".join(part for part in (self.scale, self.variant, self.system, setting, f"s{self.seed}") if part)


Kind = TypeVar("Kind", bound=Line)


@dataclass(frozen=True)
class Read(Generic[Kind]):
    """The lines of a file: those that can be read, in the order of their names, and the others with their numbers."""

    path: Path
    lines: list[Kind]
    broken: dict[int, bytes]

    @property
    def notes(self) -> list[str]:
        """One sentence on each line that cannot be read."""
        return [
            f"{self.path}, line {number}: broken (not a JSON object), so its run counts as missing. The command that "
            "wrote it writes it again."
            for number in self.broken
        ]


def read_lines(path: Path, kind: type[Kind]) -> Read[Kind]:
    """Read a file of records; nothing where there is none.

    Of two lines of one name the later counts. UserError for a line of another version, which has other keys.
    """
    found, broken = dict[str, Kind](), dict[int, bytes]()
    for number, text in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), 1):
        if not text.strip():
            continue
        contents, num_broken = json_objects([text])
        if num_broken:
            broken[number] = text
        for content in contents:
            line = _line(kind, content, where=f"{path}, line {number}")
            found[line.name] = line
    return Read(path, [found[name] for name in sorted(found)], broken)


def update_lines(
    path: Path, kind: type[Kind], *, write: Sequence[Kind], remove: Callable[[Kind], bool] = lambda _: False
) -> None:
    """Replace the lines that have the names of those in `write`, add the others, and remove those that `remove` is
    true for.

    Several processes may do so at a time: each sees what the others wrote, and a reader sees the old file or the new
    one.
    Lines that cannot be read are set aside in a hidden file beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.parent):
        read = read_lines(path, kind)
        if read.broken:
            with open(path.with_name(f"{SET_ASIDE}{path.name}"), "ab") as aside:
                aside.writelines(text + b"\n" for text in read.broken.values())
        lines = {line.name: line for line in read.lines if not remove(line)} | {line.name: line for line in write}
        write_atomically(path, "".join(f"{lines[name].text}\n" for name in sorted(lines)))


def _line(kind: type[Kind], content: dict[str, Any], *, where: str) -> Kind:
    known = {own.name for own in dataclasses.fields(kind)}
    same = content.pop("format", None) == kind.FORMAT
    if not same or not known - {*kind.NEWER} <= content.keys() <= known:
        raise UserError(
            f"{where}: not a line of this version ({kind.FORMAT}). Remove the line and start the recipe again, or read "
            "it with the version that wrote it."
        )
    try:
        line: Kind = Reader().read(kind, content)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return line
