"""Parts by name: a table per kind, free of heavy imports, and entry points of other packages.

Another package adds a part with an entry point in the group `odist.<kind>`, for example
`[project.entry-points."odist.tasks"]`; a folder of YAML files, laid out as conf/, with one in the group `odist.conf`
that names the folder as a package. YAML never names a callable.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from odist.errors import UserError

KINDS = {
    "tasks": ("odist.tasks", "TASKS"),
    "models": ("odist.models", "MODELS"),
    "strategies": ("odist.strategies", "STRATEGIES"),
    "teachers": ("odist.teachers", "TEACHERS"),
    "exchange": ("odist.exchange", "EXCHANGES"),
    "sinks": ("odist.run.sinks", "SINKS"),
}


@dataclass(frozen=True)
class Part:
    """A line of a table.

    place: `"module:Class"`; meaning: in a few words, for help
    options: dataclass of the options that the part takes, each one `odist.config.key.key`; None: it takes none
    """

    place: str
    meaning: str = ""
    options: type | None = None


def own(kind: str) -> dict[str, Part]:
    """The parts of a kind that come with odist, by name."""
    module, attribute = KINDS[kind]
    table: Mapping[str, Part | str] = getattr(importlib.import_module(module), attribute)
    return {name: part if isinstance(part, Part) else Part(part) for name, part in table.items()}


def others(kind: str) -> dict[str, str]:
    """The names of a kind that other packages add, each with its `"module:Class"`."""
    known = own(kind)
    return {point.name: point.value for point in _entry_points(f"odist.{kind}") if point.name not in known}


def names(kind: str) -> dict[str, str]:
    """All names of a kind, each with its `"module:Class"`; the package's own win over entry points."""
    return {**others(kind), **{name: part.place for name, part in own(kind).items()}}


def _entry_points(group: str) -> list[EntryPoint]:
    return [point for point in _installed(tuple(sys.path)) if point.group == group]


@functools.cache
def _installed(path: tuple[str, ...]) -> list[EntryPoint]:
    """Entry points of packages on `path`, for odist. Finding them takes 20 ms, and a command asks for them forty times."""
    found = entry_points()
    return [point for group in found.groups if group.startswith("odist.") for point in found.select(group=group)]


def other_folders() -> list[Path]:
    """Folders of other packages with choices of configurations, as in conf/."""
    found = []
    for point in _entry_points("odist.conf"):
        spec = importlib.util.find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"odist.conf: {point.name} = {point.value!r} of an installed package is not a folder of it."
            )
        found.append(Path(next(iter(spec.submodule_search_locations))))
    return found


def find(kind: str, name: str) -> Any:
    """Import the part called `name`; UserError with the known names if there is none."""
    known = names(kind)
    if name not in known:
        raise UserError(f"{kind}: there is no {name!r}. Known: {', '.join(sorted(known))}.")
    module, attribute = known[name].split(":")
    return getattr(importlib.import_module(module), attribute)
