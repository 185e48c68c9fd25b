"""What the columns of a table are: a YAML file, read and checked, or drafted from a file's columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from odist.config.suggest import choose
from odist.config.typed import Reader, yaml_content
from odist.errors import UserError

TRANSFORMS = {
    "log": "sign(x) log1p(|x|), then less the training part's mean, over its deviation",
    "standard": "less the training part's mean, over its deviation",
    "none": "as it is",
}
ENCODINGS = {"hash": "hashed into buckets", "vocabulary": "the values of the training part"}
LARGEST_ID = 2**31 - 1
BUCKETS, MIN_COUNT = 1_000_000, 10  # defaults


@dataclass(frozen=True)
class NumericColumn:
    """A column of numbers; missing ones are flagged."""

    name: str
    transform: str = "log"

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise UserError(f"transform={self.transform}: {choose(self.transform, TRANSFORMS)}")


@dataclass(frozen=True)
class CategoricalColumn:
    """A column of words or numbers of which only equality counts; missing is a value of its own.

    buckets: of a hashed column's own part of the embedding table; None: it shares those of the schema
    min_count: of a vocabulary: values seen less often in the training part become one; None: the schema's
    """

    name: str
    encoding: str = "hash"
    buckets: int | None = None
    min_count: int | None = None

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"encoding={self.encoding}: {choose(self.encoding, ENCODINGS)}")
        for name, other in (("buckets", "vocabulary"), ("min_count", "hash")):
            value = getattr(self, name)
            if value is not None and self.encoding == other:
                raise UserError(f"{name}={value}: encoding={other} does not read it. Leave it out.")
        _check_buckets(self.buckets)
        _check_min_count(self.min_count)


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table by what they are for; what it does not name is not read.

    label: names of the binary labels, one logit each; weight: of the rows in loss and metrics
    time: by which rows are ordered and divided; key: kept with each row, to name its prediction
    """

    label: list[str]
    numeric: dict[str, NumericColumn] = field(default_factory=dict)
    categorical: dict[str, CategoricalColumn] = field(default_factory=dict)
    weight: str | None = None
    time: str | None = None
    key: str | None = None
    buckets: int = BUCKETS
    min_count: int = MIN_COUNT

    def __post_init__(self) -> None:
        if not self.label:
            raise UserError("label=[]: expected the name of a column, or several.")
        if not self.numeric and not self.categorical:
            raise UserError("names no columns to predict from: give some below numeric or categorical.")
        _check_buckets(self.buckets)
        _check_min_count(self.min_count)
        taken: dict[str, str] = {}
        for name, role in self.roles:
            if name in taken:
                raise UserError(f"the column {name!r} stands below {taken[name]} and below {role}. Leave one out.")
            taken[name] = role

    @property
    def roles(self) -> list[tuple[str, str]]:
        """Every column with the key that it stands below."""
        single = [(name, role) for role in ("weight", "time", "key") if (name := getattr(self, role)) is not None]
        many = [(name, role) for role in ("label", "numeric", "categorical") for name in getattr(self, role)]
        return many + single

    @property
    def features(self) -> list[str]:
        """Names of the columns that a model predicts from, in their order."""
        return [*self.numeric, *self.categorical]

    @property
    def meaning(self) -> dict[str, Any]:
        """What gives numbers and ids of a store their meaning, JSON-able."""
        known = ("label", "numeric", "categorical", "buckets", "min_count")
        return {name: value for name, value in asdict(self).items() if name in known}


def _check_buckets(buckets: int | None) -> None:
    if buckets is not None and not 1 <= buckets <= LARGEST_ID:
        raise UserError(f"buckets={buckets}: expected a number from 1 to {LARGEST_ID}.")


def _check_min_count(count: int | None) -> None:
    if count is not None and count < 0:
        raise UserError(f"min_count={count}: expected 0 or more.")


def read_schema(path: Path) -> TableSchema:
    """Read a schema file; UserError naming the place of a mistake and what was probably meant."""
    try:
        content = yaml_content(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--schema {path}: cannot be read ({error.strerror}). To draft one: odist prepare table --input FILE "
            "--print-schema"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None
    try:
        return schema_of(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def schema_of(content: Any) -> TableSchema:
    """Make a schema of what a YAML file or a store says; short forms are written out first."""
    if not isinstance(content, Mapping):
        raise UserError("expected keys and values: label, numeric, categorical.")
    full = dict(content)
    if isinstance(full.get("label"), str):
        full["label"] = [full["label"]]
    for role, word in (("numeric", "transform"), ("categorical", "encoding")):
        if role in full:
            full[role] = _written_out(full[role], word)
    found: TableSchema = Reader(skips_empty=True).read(TableSchema, full)
    return found


def _written_out(columns: Any, word: str) -> Any:
    # [a, b] as {a: {}, b: {}}, and {a: log} as {a: {transform: log}}.
    if isinstance(columns, list) and all(isinstance(name, str) for name in columns):
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"the column {twice!r} is named twice.")
        return {name: {} for name in columns}
    if not isinstance(columns, Mapping):
        return columns
    plain = {name: {} if value is None else value for name, value in columns.items()}
    return {
        name: {key: item for key, item in value.items() if key != "name"}
        if isinstance(value, Mapping)
        else {word: value}
        for name, value in plain.items()
    }


LIKELY = {  # patterns of the names that a draft takes a column for
    "label": r"(is_?)?(label|target|click(s|ed)?|y|conver(sion|ted))",
    "weight": r"(sample_?)?weight",
    "time": r"time|timestamp|ts|date|datetime|day|(event|created|request|click)_?(time|at|date|ts)",
    "key": r"(row|request|impression|event|record)?_?(id|uuid|key)",
}


def draft(columns: Mapping[str, str], *, source: str) -> str:
    """Draft a schema from the names of a file's columns and their kinds, as YAML.

    columns: name -> number, text, time or other; source: what the first line calls the file
    """
    roles: dict[str, list[str]] = {role: [] for role in (*LIKELY, "numeric", "categorical")}
    for name, kind in columns.items():
        likely = next((role for role, text in LIKELY.items() if re.fullmatch(text, name, re.IGNORECASE)), None)
        if kind == "time":
            likely = "time"
        if likely is None or (likely != "label" and roles[likely]):
            likely = "numeric" if kind == "number" else "categorical" if kind == "text" else None
        if likely is not None:
            roles[likely].append(name)
    label = roles["label"] or ["LABEL"]
    lines = [f"# Drafted from {source}: look at every line. What is not named is not read."]
    lines.append(f"label: {_word(label[0]) if len(label) == 1 else _flow(label)}")
    for role in ("weight", "time", "key"):
        lines += [f"{role}: {_word(name)}" for name in roles[role]]
    shown = (("numeric", "log", "standard, none"), ("categorical", "hash", "vocabulary"))
    for role, default, others in shown:
        if roles[role]:
            lines.append(f"{role}: # each {default}, or {others}")
            lines += [f"  {_word(name)}: {default}" for name in roles[role]]
    if roles["categorical"]:
        lines.append(f"buckets: {BUCKETS} # embedding rows that the hashed columns share")
    return "\n".join(lines) + "\n"


def _word(name: str) -> str:
    import yaml

    return yaml.safe_dump(name, allow_unicode=True, width=10**6).splitlines()[0]


def _flow(names: Sequence[str]) -> str:
    return f"[{', '.join(map(_word, names))}]"
