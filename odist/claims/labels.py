"""What a report calls its systems: their labels with the sizes that they were run with, and the paper's beside them.

A label may hold `{batch}`, the examples of one group's step, and `{reload}`, the steps between two reloads of the
teachers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from odist.claims.recipe import Recipe
from odist.claims.record import Record

PLACES = ("batch", "reload")
PLACE = re.compile(r"\{(\w*)\}")


def with_sizes(recipe: Recipe, records: Sequence[Record]) -> Recipe:
    """The recipe with every label filled from the records of its system, or without the place where it has none."""
    configs = {record.system: record.config for record in records}
    systems = {
        name: replace(system, label=_filled(system.label, configs.get(name))) for name, system in recipe.systems.items()
    }
    return replace(recipe, systems=systems)


def _filled(label: str, config: Mapping[str, Any] | None) -> str:
    if not PLACE.search(label):
        return label
    if config is None:
        return label[: label.index("{")].rpartition(",")[0].strip() or label
    batch, workers = config["train"]["batch"], config.get("workers", 1)
    sizes = {"batch": f"batch {batch}" if workers == 1 else f"{workers} workers of {batch}"}
    if "{reload}" in label:
        steps = max(1, config["exchange"]["interval"] // (batch * workers))
        sizes["reload"] = "step" if steps == 1 else f"{steps} steps"
    return PLACE.sub(lambda match: sizes[match.group(1)], label)
