"""Parts by name: a literal dict of `"module:Class"` per kind, and entry points of other packages.

Another package adds a part with an entry point in the group `odist.<kind>`, for example
`[project.entry-points."odist.tasks"]`. YAML never names a callable.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

KINDS = {
    "tasks": ("odist.tasks", "TASKS"),
    "models": ("odist.models", "MODELS"),
    "strategies": ("odist.strategies", "STRATEGIES"),
    "teachers": ("odist.teachers", "TEACHERS"),
    "exchange": ("odist.exchange", "EXCHANGES"),
    "sinks": ("odist.run.sinks", "SINKS"),
}


def names(kind: str) -> dict[str, str]:
    """All names of a kind, each with its `"module:Class"`; the package's own win over entry points."""
    module, attribute = KINDS[kind]
    own: dict[str, str] = getattr(importlib.import_module(module), attribute)
    return {**{point.name: point.value for point in entry_points(group=f"odist.{kind}")}, **own}


def find(kind: str, name: str) -> Any:
    """Import the part called `name`; UserError with the known names if there is none."""
    from odist.errors import UserError

    known = names(kind)
    if name not in known:
        raise UserError(f"{kind}: there is no {name!r}. Known: {', '.join(sorted(known))}.")
    module, attribute = known[name].split(":")
    return getattr(importlib.import_module(module), attribute)
