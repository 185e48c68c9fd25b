"""The planned runs at the settings that were tuned, each with its folder and the finished runs that it begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from odist.claims.planned import PlannedRun, frontier_runs, next_seed
from odist.claims.recipe import Recipe


@dataclass(frozen=True)
class FinalPlan:
    """The runs of the tables and of the frontier beside them, at their settings, each with its folder.

    paths, paths_beside: the folders of `runs` and of `beside`, in their order
    """

    runs: list[PlannedRun]
    paths: list[Path]
    beside: list[PlannedRun]
    paths_beside: list[Path]

    @property
    def trained(self) -> dict[Path, PlannedRun]:
        """Folder -> its run; one that the tables and the frontier share stands once."""
        tables = dict(zip(self.paths, self.runs, strict=True))
        return tables | {
            path: run for path, run in zip(self.paths_beside, self.beside, strict=True) if path not in tables
        }


def final_plan(
    recipe: Recipe,
    runs: Sequence[PlannedRun],
    *,
    chosen: Mapping[tuple[str, str], tuple[str, float]],
    place: Path,
    scale: str,
) -> FinalPlan:
    """Give planned runs their settings and folders.

    chosen: (variant, system) -> the tuned key and its value; place: folder of the runs
    """
    plan = [_use_tuned(run, chosen.get((run.variant, run.system))) for run in runs]
    paths = [place / _folder_name(run, chosen.get((run.variant, run.system))) for run in plan]
    plan = _built_on(recipe, plan, paths=paths)
    beside = frontier_runs(recipe, plan, scale=scale)
    return FinalPlan(plan, paths, beside, [_path_beside(run, plan, paths, folder=place) for run in beside])


def _built_on(recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path]) -> list[PlannedRun]:
    """The plan with each run's finished teachers and first weights, of the seed after its own, as overrides."""
    where = {(run.variant, run.system, run.seed): path for run, path in zip(plan, paths, strict=True)}

    def path_of(run: PlannedRun, system: str) -> Path:
        seeds = [seed for variant, name, seed in where if (variant, name) == (run.variant, system)]
        return where[run.variant, system, next_seed(run.seed, seeds)]

    built = []
    for run in plan:
        system, lines = recipe.systems[run.system], []
        if system.teachers:
            lines.append(f"algorithm.teachers=[{path_of(run, system.teachers)}]")
        if system.starts_from:
            lines.append(f"train.init_from={path_of(run, system.starts_from)}")
        built.append(replace(run, overrides=run.override(lines)) if lines else run)
    return built


def _path_beside(run: PlannedRun, plan: Sequence[PlannedRun], paths: Sequence[Path], *, folder: Path) -> Path:
    """The folder of a run of the frontier: that of the planned run which has its value anyway, or its own."""
    for planned, path in zip(plan, paths, strict=True):
        same = (planned.variant, planned.system, planned.seed) == (run.variant, run.system, run.seed)
        if same and sorted(planned.overrides) == sorted(run.overrides):
            return path
    return folder / run.name


def _use_tuned(run: PlannedRun, chosen: tuple[str, float] | None) -> PlannedRun:
    """The run with its system's tuned key and value as its last override; unchanged if nothing was tuned."""
    return run if chosen is None else replace(run, overrides=run.override([f"{chosen[0]}={chosen[1]:g}"]))


def _folder_name(run: PlannedRun, chosen: tuple[str, float] | None) -> str:
    """A folder of its own for every tuned value, so that runs made before tuning stay where they are."""
    return run.name if chosen is None else f"{run.name}-{chosen[0].rsplit('.', 1)[-1]}{chosen[1]:g}"
