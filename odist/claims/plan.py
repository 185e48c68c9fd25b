"""What `odist reproduce` and `odist tune` have in common: a recipe by name, a scale, data, and the runs that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odist.claims.jobs import Echo
from odist.claims.planned import PlannedRun, planned_runs
from odist.claims.recipe import Recipe
from odist.claims.recipe_file import load_recipe
from odist.errors import UserError


@dataclass(frozen=True)
class Plan:
    """The runs of a recipe at a scale.

    left_out: variants that are not run, each with the variable that it needs
    """

    recipe: Recipe
    scale: str
    runs: list[PlannedRun]
    left_out: dict[str, str]

    def tell_left_out(self, echo: Echo) -> None:
        """Say which variants are left out for want of a variable. Raises UserError where nothing is left to run."""
        options = {variant: f"--{variable.replace('_', '-')}" for variant, variable in self.left_out.items()}
        if not self.runs:
            variants = ", ".join(variant for variant in self.left_out if variant) or "everything"
            needed = ", ".join(sorted(set(options.values())))
            raise UserError(
                f"recipe {self.recipe.name} runs {variants} on prepared data only at this scale. Add {needed} DIR."
            )
        for variant, option in options.items():
            echo(f"skipped {f'variant {variant}' if variant else 'the runs on prepared data'}: give {option} DIR")


def plan_runs(
    name_or_path: str | Path, *, scale: str | None, data_path: Path | None, variants: Sequence[str] = ()
) -> Plan:
    """Plan the runs of a recipe.

    scale: None for the recipe's own; data_path: prepared data for the variants that need it, None to leave those out
    variants: those to run, empty for all
    Raises UserError for an unknown recipe, scale or variant, and for data that are not there.
    """
    recipe = load_recipe(name_or_path)
    scale = recipe.scale if scale is None else scale
    if data_path is not None and not data_path.is_dir():
        raise UserError(f"{data_path}: no such folder of prepared data. `odist prepare` makes one.")
    variables = {} if data_path is None else {"data_path": str(data_path.resolve())}
    runs, left_out = planned_runs(recipe, scale, variables=variables, only=variants)
    return Plan(recipe, scale, runs, left_out)
