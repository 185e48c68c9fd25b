"""A report's records, read and judged: what its page, its figures and the page of all reports are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from odist.claims.labels import with_sizes
from odist.claims.recipe import Recipe
from odist.claims.recipe_file import parse_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines
from odist.claims.retrains import Retrains, retrains_by_system
from odist.claims.targets import times_to_targets
from odist.claims.verdicts import Verdict, judge_all
from odist.errors import UserError


@dataclass(frozen=True)
class Judged:
    """The records of a recipe at one scale.

    records: those of the tables; frontier: those of the frontier
    retrains: (variant, system) -> its runs, with their steps to the targets; verdicts: variant -> one for each claim
    """

    recipe: Recipe
    records: list[Record]
    retrains: dict[tuple[str, str], Retrains]
    verdicts: dict[str, list[Verdict]]
    frontier: list[Record]

    @property
    def scale(self) -> str:
        return self.records[0].scale

    @property
    def command(self) -> str:
        """What to type to make the report again."""
        needed = {
            layer.needs for key, layer in self.recipe.variants.items() if any(r.variant == key for r in self.records)
        }
        options = "".join(f" --{need.replace('_', '-')} DIR" for need in sorted(need for need in needed if need))
        return f"odist reproduce {self.recipe.name} --scale {self.scale}{options}"


def read_judged(folder: Path, *, name: str, echo: Callable[[str], None] = print) -> Judged:
    """Read the records of a report and judge its claims.

    name: of the recipe; echo: told of every line of the records that cannot be read
    UserError when the folder holds no recipe or no record.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: no report of a recipe (it has no recipe.yaml). `odist reproduce {name}` makes it.")
    recipe = parse_recipe((folder / "recipe.yaml").read_text(encoding="utf-8"), name=name)
    read = read_lines(home_of(recipe, folder) / RUNS_FILE, Record)
    for note in read.notes:
        echo(note)
    records = [record for record in read.lines if not recipe.runs_of or record.system in recipe.systems]
    frontier = [record for record in records if record.setting]
    records = [record for record in records if not record.setting]
    if not records:
        raise UserError(f"{read.path}: no records of finished runs. `odist reproduce {name}` trains them.")
    recipe = with_sizes(recipe, records)
    retrains = retrains_by_system(records, recipe, timed=times_to_targets(recipe, records))
    verdicts = {variant: judge_all(recipe, retrains, variant=variant) for variant in recipe.variants}
    return Judged(recipe, records, retrains, verdicts, frontier)


def minutes_of(records: Sequence[Record], *, cores: int = 2) -> float:
    """How long training these runs takes on so many cores, a run on each; runs that several systems read count once."""
    seconds: dict[tuple[str, str, int], float] = {}
    for record in records:
        run = (record.variant, str(record.env.get("config_hash") or record.system), record.seed)
        seconds[run] = max(seconds.get(run, 0.0), float(record.results.get("seconds") or 0.0))
    return sum(seconds.values()) / cores / 60


def home_of(recipe: Recipe, folder: Path) -> Path:
    """The folder of the records: the report's own, or that of the recipe whose runs it reads, beside it."""
    return folder.with_name(folder.name.replace(recipe.name, recipe.home, 1))
