"""The runs that follow from a recipe: which systems with which seeds and overrides, and those of a frontier beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Template

from odist.claims.recipe import Recipe
from odist.errors import UserError


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a recipe; `name` is unique in it. setting: of a trial, such as `lr0.02`."""

    variant: str
    system: str
    seed: int
    overrides: tuple[str, ...]
    setting: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.variant, self.system, self.setting, f"s{self.seed}") if part)

    def override(self, lines: Sequence[str]) -> tuple[str, ...]:
        """The run's overrides with `lines` added; of two overrides of one key the later wins."""
        return last_of_each_key([*self.overrides, *lines])


def next_seed(seed: int, seeds: Sequence[int]) -> int:
    """The seed after `seed`, the first after the last: of the run that teaches, or is to be replaced."""
    ordered = sorted(seeds)
    return ordered[(ordered.index(seed) + 1) % len(ordered)]


def planned_runs(
    recipe: Recipe, scale: str, *, variables: Mapping[str, str], only: Sequence[str] = ()
) -> tuple[list[PlannedRun], dict[str, str]]:
    """All runs of a recipe at a scale, and the variants left out with the variable each of them needs.

    only: names of variants, all others are passed over; empty for all. UserError for one that the scale lacks.
    Of two overrides of one key the later wins: recipe, scale, variant, then the system's own in that order.
    """
    of_scale = recipe.layer(scale)
    runs, left_out = [], {}
    known = recipe.variants_at(scale)
    for name in only:
        if not name or name not in known:
            choices = f"Choose among: {', '.join(known)}." if any(known) else "It has no variants: leave --variant out."
            raise UserError(f"recipe {recipe.name} has no variant {name!r} at scale {scale}. {choices}")
    for variant in known:
        if only and variant not in only:
            continue
        layer = recipe.variants[variant]
        if layer.needs and not variables.get(layer.needs):
            left_out[variant] = layer.needs
            continue
        values = {**of_scale.variables, **layer.variables, **variables}
        for name in recipe.systems_in(variant):
            system = recipe.systems[name]
            if system.runs_of:
                continue
            own = (system.overrides, of_scale.systems.get(name, ()), layer.systems.get(name, ()))
            lines = [f"scale={scale}", *recipe.overrides, *of_scale.overrides, *layer.overrides, *sum(own, ())]
            overrides = tuple(_substitute(line, values, recipe=recipe) for line in last_of_each_key(lines))
            runs += [PlannedRun(variant, name, seed, overrides) for seed in recipe.seeds_at(scale, variant)]
    return runs, left_out


def frontier_runs(recipe: Recipe, runs: Sequence[PlannedRun], *, scale: str) -> list[PlannedRun]:
    """The runs of the frontier that follow from the planned ones of the scale, each with its setting."""
    rules = recipe.frontier
    if rules is None or (rules.scales is not None and scale not in rules.scales):
        return []
    short = rules.key.rsplit(".", 1)[-1]
    chosen = [run for run in runs if not rules.systems or run.system in rules.systems]
    return [
        replace(run, overrides=run.override([f"{rules.key}={value:g}"]), setting=f"{short}{value:g}")
        for run in chosen
        for value in rules.values
        if rules.seeds is None or run.seed in rules.seeds
    ]


def last_of_each_key(lines: Sequence[str]) -> tuple[str, ...]:
    """Overrides with the last one of every key, at the place of the first."""
    return tuple({line.split("=", 1)[0]: line for line in lines}.values())


def _substitute(line: str, values: Mapping[str, str], *, recipe: Recipe) -> str:
    try:
        return Template(line).substitute(values)
    except (KeyError, ValueError) as error:
        known = ", ".join(values) or "none"
        raise UserError(
            f"recipe {recipe.name}: the override {line!r} uses an unknown variable ({error}). Known: {known}."
        ) from error
