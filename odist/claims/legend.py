"""Which runs share a figure, and what each system is called in its legend.

Runs share a figure when they learn one task from the same rows: metrics of other tasks and rows cannot be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odist.claims.style import ALGORITHMS
from odist.config.systems import system_differences, system_of
from odist.run.folder import Run

LARGEST_NUMBER_OF_KEYS = 3  # beside an algorithm's name
# What a reader asks for first. Where several keys tell two systems apart, the first ones are named.
FIRST = (
    "scale",
    "model.name",
    "algorithm.strategy",
    "num_groups",
    "workers",
    "train.batch",
    "optim.lr",
    "data.partition",
    "model",
    "optim",
    "algorithm",
    "exchange",
    "train",
    "data",
    "task",
)
WORDS = {  # key: how its value is said; any other by its last word, as in `lr 0.02`
    "scale": "{} scale",
    "model.name": "{}",
    "algorithm.strategy": "{}",
    "num_groups": "{} groups",
    "workers": "{} workers",
    "data.partition": "{} rows",
    "optim.name": "{}",
}


@dataclass
class Comparison:
    """Runs of one task on the same rows. name: for files; title: for readers."""

    name: str
    title: str
    runs: list[Run] = field(default_factory=list)


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """The runs by task and data fingerprint, in the order in which they first appear."""
    found: dict[tuple[str, str], Comparison] = {}
    for run in runs:
        config, fingerprint = run.config, str(run.env.get("data_fingerprint") or "unknown")[:8]
        task, data = str((config.get("task") or {}).get("name") or "task"), config.get("data") or {}
        called = Path(str(data["path"])).name if data.get("path") else str(data.get("name") or "data")
        if (task, fingerprint) not in found:
            name = "-".join(re.sub(r"[^\w.]+", "_", word) for word in (task, called, fingerprint))
            found[task, fingerprint] = Comparison(name, f"{task}, {called} data ({fingerprint})")
        found[task, fingerprint].runs.append(run)
    return list(found.values())


@dataclass
class SystemRuns:
    """The runs of one system, which differ in their seed alone. label: in a legend; algorithm: its name."""

    label: str
    algorithm: str
    runs: list[Run]


def systems_of(runs: Sequence[Run]) -> list[SystemRuns]:
    """Runs by system, that is by what decides what they learn; by algorithm, those with the most runs first.

    A label is the algorithm's name and, where it names several systems, at most three keys that tell them apart: keys
    that decide, and that the run's own algorithm reads.
    """
    settings: list[dict[str, Any]] = []
    members: list[list[Run]] = []
    for run in runs:
        system = system_of(run.config)
        if system in settings:
            members[settings.index(system)].append(run)
        else:
            settings.append(system)
            members.append([run])
    known = list(ALGORITHMS)
    names = [str(system.get("algorithm.name", runs[0].name)) for system in settings]
    places = [known.index(name) if name in known else len(known) for name in names]
    order = sorted(range(len(names)), key=lambda index: (places[index], -len(members[index])))
    names, members = [names[index] for index in order], [members[index] for index in order]
    labels = [""] * len(names)
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        said = _differences([members[place][0].config for place in places])
        for place, words in zip(places, said, strict=True):
            labels[place] = ", ".join([name, *words])
    return [
        SystemRuns(label if labels.count(label) == 1 else f"{label} ({labels[: index + 1].count(label)})", name, its)
        for index, (label, name, its) in enumerate(zip(labels, names, members, strict=True))
    ]


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each of these configurations, in a few words, what tells it from the others; nothing for a single one.

    The same keys for all where three are enough. Otherwise each says in what it differs from the first, and the first
    has the keys in which most others do.
    """
    differing = system_differences(configs)
    keys = sorted(differing, key=_rank)
    chosen: list[str] = []
    for key in keys:  # a key that separates no further two says nothing new
        if len(chosen) < LARGEST_NUMBER_OF_KEYS and _apart(differing, [*chosen, key]) > _apart(differing, chosen):
            chosen.append(key)
    each = [chosen] * len(configs)
    if chosen and _apart(differing, chosen) < len(configs):
        others = [
            [key for key in keys if differing[key][place] != differing[key][0]] for place in range(1, len(configs))
        ]
        often = sorted(keys, key=lambda key: -sum(key in own for own in others))
        each = [own[:LARGEST_NUMBER_OF_KEYS] for own in (sorted(often[:LARGEST_NUMBER_OF_KEYS], key=_rank), *others)]
    last = [key.rsplit(".", 1)[-1] for key in keys]
    words = {
        key: WORDS.get(key, f"{word if last.count(word) == 1 else key} {{}}")
        for key, word in zip(keys, last, strict=True)
    }
    return [
        [words[key].format(_value(differing[key][place])) for key in own if differing[key][place] is not None]
        for place, own in enumerate(each)
    ]


def _rank(key: str) -> int:
    return next((place for place, first in enumerate(FIRST) if key == first or key.startswith(f"{first}.")), len(FIRST))


def _apart(differing: Mapping[str, Sequence[Any]], keys: Sequence[str]) -> int:
    """How many of the configurations these keys tell apart."""
    return len(set(zip(*([repr(value) for value in differing[key]] for key in keys), strict=True)))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 28 else f"{text[:13]}…{text[-14:]}"
