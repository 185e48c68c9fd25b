"""What one key of the configuration means and may be, said beside its default.

`odist train --help`, tab completion and the checks of odist.launch.check all read it from the fields of odist.config.schema.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")
MISSING: Any = "???"  # OmegaConf's own mark, written out so that workers need no OmegaConf


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; an open end does not belong to it."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return math.isfinite(number) and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"more than {_number(self.low)}" if self.open_low else f"{_number(self.low)} or more"
        return f"from {_number(self.low)} to {'below ' if self.open_high else ''}{_number(self.high)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


POSITIVE = Bounds(0, open_low=True)
NOT_NEGATIVE = Bounds(0)
SHARE = Bounds(0, 1)
BELOW_ONE = Bounds(0, 1, open_high=True)


@dataclass(frozen=True)
class Key:
    """Beside a key's name, type and default.

    choices: the values it may have; with what each means where that is not plain
    parts: kind of odist.registry whose names it may have
    bounds: range of its number, or of each number of its list
    as_steps: a number of examples per group, which is also shown as steps
    node: of a part's option: the node that it stands below, where that is not the one of its kind
    younger: than finished runs, which have to keep their hash: hashed only where it differs from its default
    only_with: what to type so that something reads it; given with anything else it is refused
    place: "path" of a folder, "url" that may be one, or "run": a finished run's folder, for which what was trained there is
        hashed; they are made absolute, and "typed" is a path that stays as it was typed
    """

    meaning: str = ""
    choices: tuple[str | int, ...] | Mapping[str, str] = ()
    parts: str | None = None
    bounds: Bounds | None = None
    as_steps: bool = False
    node: str | None = None
    place: str = ""
    younger: bool = False
    only_with: str | None = None


def key(
    default: Value,
    meaning: str,
    *,
    choices: tuple[str | int, ...] | Mapping[str, str] = (),
    parts: str | None = None,
    bounds: Bounds | None = None,
    as_steps: bool = False,
    node: str | None = None,
    place: str = "",
    younger: bool = False,
    only_with: str | None = None,
) -> Value:
    """A dataclass field with its default and what `Key` says of it; lists and nodes are copied for every object."""
    described = Key(
        meaning,
        choices=choices,
        parts=parts,
        bounds=bounds,
        as_steps=as_steps,
        node=node,
        place=place,
        younger=younger,
        only_with=only_with,
    )
    copied: Any = isinstance(default, list) or dataclasses.is_dataclass(default)
    options: Any = {"default_factory": lambda: copy.deepcopy(default)} if copied else {"default": default}
    field: Any = dataclasses.field(metadata={"key": described}, **options)
    return field


def key_of(field: dataclasses.Field[Any]) -> Key:
    """What is said of a field; an empty `Key` where another package's schema says nothing."""
    described: Key = field.metadata.get("key", Key())
    return described
