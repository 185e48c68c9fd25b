"""What a tuning found: `tuning.json` of a recipe, the values chosen in it, and its part of the report page.

    tuning.json   scale -> variant -> grid and, for every system, its mean metric at each value and the choice

odist.claims.tune runs the trials and writes it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from odist.claims.quantities import better, higher_is_better, name_of
from odist.claims.recipe import Recipe, Tuning
from odist.claims.record import Record
from odist.claims.table import estimate, markdown_table
from odist.config.identity import FREE_KEYS, flatten, younger_keys
from odist.config.schema import Config
from odist.config.typed import Reader
from odist.errors import UserError
from odist.files import write_atomically
from odist.run.damage import read_json

FORMAT = "odist-tuning-1"
FILE = "tuning.json"
FEWEST_SEEDS = 5  # below it the page says so
FEWEST_SEEDS_WITH_ERROR = 3
ONE_VARIANT = "all"  # the key of a recipe without variants
AVERAGE_EVERY = "algorithm.average_every"  # of strategies that average weights: all-reduce does not read it


@dataclass(frozen=True)
class Tried:
    """A value of the tuned setting and the metric of each seed, None where it diverged. mean: None if one did"""

    value: float
    mean: float | None
    by_seed: dict[str, float | None]


@dataclass(frozen=True)
class TunedSystem:
    """What the trials of one system say.

    chosen: None where every trial diverged; at_edge: `low` or `high` where it lies at an edge of the grid
    batch: examples of a step of all workers; settings: see `settings`
    """

    chosen: float | None
    at_edge: str | None
    batch: int
    values: list[Tried]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TunedVariant:
    """What was tuned on one variant at one scale, by which rules.

    grid: rising; systems: by name
    baseline: the system towards whose value the others' were moved (`towards_baseline`), None for the best of each
    """

    key: str
    metric: str
    seeds: list[int]
    overrides: list[str]
    grid: list[float]
    systems: dict[str, TunedSystem]
    baseline: str | None = None


@dataclass
class TuningFile:
    """The content of a tuning.json. scales: scale -> variant, `all` where there are none -> what was found"""

    recipe: str
    scales: dict[str, dict[str, TunedVariant]] = field(default_factory=dict)
    format: str = FORMAT

    def found_at(self, *, scale: str, variant: str) -> TunedVariant | None:
        """What was tuned for a variant at a scale, None if nothing was."""
        return self.scales.get(scale, {}).get(variant or ONE_VARIANT)

    def write(self, path: Path) -> None:
        content = asdict(self)
        for found in (found for variants in content["scales"].values() for found in variants.values()):
            if found["baseline"] is None:  # as older files are
                del found["baseline"]
        ordered = {"format": content.pop("format"), **content}
        write_atomically(path, json.dumps(ordered, indent=1, allow_nan=False) + "\n")


def read_tuning(path: Path) -> TuningFile | None:
    """The content of a tuning.json, None where there is none. Raises UserError for a file that is not one."""
    cure = "Delete it and start `odist tune` again."
    if not path.is_file():
        return None
    content = read_json(path, cure=cure)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: not a tuning of this version ({FORMAT}). {cure}")
    try:
        tuning: TuningFile = Reader().read(TuningFile, content)
    except UserError as error:
        raise UserError(f"{path}: {error} {cure}") from error
    return tuning


def chosen_values(recipe: Recipe, tuning: TuningFile | None, *, scale: str) -> dict[tuple[str, str], tuple[str, float]]:
    """(variant, system) -> (key, chosen value), for those that were tuned."""
    chosen = {}
    for variant in recipe.variants:
        found = tuning.found_at(scale=scale, variant=variant) if tuning is not None else None
        for name, system in recipe.systems.items():
            entry = found.systems.get(system.tuned_with or name) if found is not None else None
            if found is not None and entry is not None and entry.chosen is not None:
                chosen[variant, name] = (found.key, entry.chosen)
    return chosen


def find_tuning(recipe: Recipe, *, output: Path) -> Path | None:
    """The file of what was tuned: in `output`, else in ./reports, else beside the package; None if nowhere."""
    if recipe.tuning is None:
        return None
    folders = (output, Path("reports"), Path(__file__).resolve().parent.parent.parent / "reports")
    files = [folder / recipe.home / FILE for folder in folders]
    return next((file for file in files if file.is_file()), None)


def settings(config: Mapping[str, Any], tuning: Tuning) -> dict[str, Any]:
    """What a trial and a reported run of one system have to share, by dotted key.

    Left out are the tuned key, what tuning overrides, the seed, places, and what decides nothing.
    """
    left_out = {tuning.key, "seed", "data.path", "algorithm.teachers", "train.init_from"}
    left_out |= {line.split("=", 1)[0].lstrip("+") for line in tuning.overrides}
    kept = {}
    for key, value in flatten(config):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
        if key not in left_out and not free:
            kept[key] = value
    return kept


def choose(values: Mapping[float, float | None], *, metric: str) -> tuple[float | None, str | None]:
    """The value with the best mean metric (the smaller of equals), and the edge of the grid that it lies at.

    values: setting -> mean metric, None where a trial diverged
    returns: (None, None) when every setting diverged; edge is `low`, `high` or None inside the grid
    """
    best = None
    for value in sorted(values):
        loss = values[value]
        if loss is not None and math.isfinite(loss) and (best is None or better(metric, loss, values[best] or 0.0)):
            best = value
    if best is None:
        return None, None
    edge = "low" if best == min(values) else "high" if best == max(values) else None
    return best, edge


def towards_baseline(values: Sequence[Tried], *, best: float, baseline: float, metric: str) -> float:
    """Of the settings that are as good as the best within one standard error, the one nearest to the baseline's.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3) with the baseline in place of the simplest model:
    systems are compared at the baseline's setting unless the trials say otherwise. The error is that of the mean
    difference from the best over the seeds; below three seeds there is none, and the best is taken.

    values: of one system
    """
    sign = -1.0 if higher_is_better(metric) else 1.0
    of_best = next(tried.by_seed for tried in values if tried.value == best)
    as_good = [best]
    for tried in values:
        pairs = [(loss, of_best[seed]) for seed, loss in tried.by_seed.items()]
        worse = [sign * (loss - other) for loss, other in pairs if loss is not None and other is not None]
        if tried.mean is None or len(worse) < max(len(pairs), FEWEST_SEEDS_WITH_ERROR):
            continue
        if statistics.fmean(worse) <= statistics.stdev(worse) / math.sqrt(len(worse)):
            as_good.append(tried.value)
    return min(as_good, key=lambda value: (abs(math.log(value / baseline)), value != best))


def tuning_notes(
    recipe: Recipe, tuning: TuningFile | None, *, scale: str, variant: str, records: Sequence[Record]
) -> list[str]:
    """What a reader has to know before believing a comparison: untuned, tuned otherwise, at an edge."""
    if recipe.tuning is None:
        return []
    found = tuning.found_at(scale=scale, variant=variant) if tuning is not None else None
    if found is None:
        command = f"odist tune {recipe.home} --scale {scale}"
        return [
            f"**Untuned: every system used the preset's `{recipe.tuning.key}`.** `{command}` tunes it for each system."
        ]
    notes, chosen = list[str](), chosen_values(recipe, tuning, scale=scale)
    if len(found.seeds) < FEWEST_SEEDS:
        seeds = "1 seed" if len(found.seeds) == 1 else f"{len(found.seeds)} seeds"
        notes.append(f"tuned by {seeds}, fewer than {FEWEST_SEEDS}: neighbours may differ by less than seeds do.")
    lent: dict[str, list[str]] = {}
    for name, system in recipe.systems.items():
        own = [record for record in records if record.system == name]
        if not own:
            continue
        if (variant, name) not in chosen:
            notes.append(f"**Untuned: {system.label}** used the preset's `{recipe.tuning.key}`.")
            continue
        key, value = chosen[variant, name]
        used = sorted({float(dict(flatten(record.config)).get(key, math.nan)) for record in own})
        if used != [value]:
            notes.append(
                f"{system.label} ran with `{key}` {', '.join(f'{u:g}' for u in used)}, tuning chose {value:g}."
            )
        if system.runs_of:
            continue
        if system.tuned_with:
            owner = recipe.systems.get(system.tuned_with)
            lent.setdefault(owner.label if owner else system.tuned_with, []).append(system.label)
            continue
        entry = found.systems[name]
        changed = sorted({key for record in own for key in _differing(settings(record.config, recipe.tuning), entry)})
        if changed:
            notes.append(f"{system.label} was tuned with other settings than it ran with: {', '.join(changed)}.")
        if entry.at_edge:
            edge = f"lies at the {entry.at_edge} edge of the grid"
            notes.append(
                f"the `{key}` of {system.label} {edge}, which was extended {recipe.tuning.extensions} times at most."
            )
    return notes + [
        f"without trials of their own, and run with the `{recipe.tuning.key}` of {owner}: {'; '.join(labels)}."
        for owner, labels in lent.items()
    ]


def _differing(own: Mapping[str, Any], entry: TunedSystem) -> list[str]:
    """Keys with which the run differs from the trials. One that the trials are too old to have does not count, one that the
    run is too old to have counts at its default.
    """
    defaults = younger_keys(Config())
    differing = [key for key, value in entry.settings.items() if own.get(key, defaults.get(key)) != value]
    return [key for key in differing if key != AVERAGE_EVERY or averages_weights(own)]


def averages_weights(config: Mapping[str, Any]) -> bool:
    """Whether the strategy of a configuration, dotted keys and values, may read AVERAGE_EVERY."""
    return bool(config.get("algorithm.strategy") != "allreduce")


def tuning_parts(recipe: Recipe, tuning: TuningFile | None, *, scale: str) -> list[str]:
    """The page's appendix: for every variant the whole grid, the chosen value marked."""
    if recipe.tuning is None or tuning is None or scale not in tuning.scales:
        return []
    parts = ["## How the settings were tuned\n"]
    for variant, layer in recipe.variants.items():
        found = tuning.found_at(scale=scale, variant=variant)
        if found is None:
            continue
        metric, seeds = name_of(found.metric), ", ".join(map(str, found.seeds))
        rows_of = ", ".join(f"`{line}`" for line in found.overrides if line.startswith("data."))
        needed = {system.tuned_with or name for name, system in recipe.systems.items()}
        tuned = [name for name in found.systems if name in needed]
        whose = "every system by itself"
        if len(tuned) == 1 and len(recipe.systems) > 1:
            label = recipe.systems[tuned[0]].label if tuned[0] in recipe.systems else tuned[0]
            whose = f"{label}, which all systems ran with"
        rule = ""
        if found.baseline in recipe.systems:
            label = recipe.systems[found.baseline].label
            rule = f" Of the values as good as the best within one standard error of the difference, that nearest to {label}'s."
        parts.append(
            f"{layer.label + ': ' if layer.label else ''}`{found.key}` of {whose}, by the mean {metric} "
            f"on rows ({rows_of}) and seeds ({seeds}) that are not reported"
            f"{', the same number of trials for all' if len(tuned) > 1 else ''}. "
            f"Chosen values are bold, `diverged` where a trial did.{rule}\n"
        )
        columns = {"label": "system", "batch": "batch"} | {f"{v:g}": f"{v:g}" for v in found.grid}
        rows = []
        for name in tuned:
            entry = found.systems[name]
            label = recipe.systems[name].full_label if name in recipe.systems else name
            row = {"label": label, "batch": str(entry.batch)}
            for tried in entry.values:
                text = "diverged" if tried.mean is None else estimate(tried.mean)
                row[f"{tried.value:g}"] = f"**{text}**" if tried.value == entry.chosen else text
            rows.append(row)
        parts.append(markdown_table(columns, rows))
    return parts
