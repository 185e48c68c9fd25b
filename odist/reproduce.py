"""Reproduce a recipe: train the runs it lacks, record the finished ones, write the report.

Every run is an `odist train` process of its own, so that a crash costs one run, a finished run is
reused and an interrupted one continued. What the numbers mean is left to odist.report.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from odist.errors import Interrupted, OdistError, UserError
from odist.report.recipe import PlannedRun, Recipe, load_recipe
from odist.run import Run, write_atomically

if TYPE_CHECKING:
    from rich.progress import Progress

Echo = Callable[[str], None]
SECONDS_TO_SAVE = 120.0  # how long an interrupted run may take to save before it is killed


@dataclass(frozen=True)
class ReproduceResult:
    """What `reproduce` did.

    folder: of the report; files: those written
    commands: `odist train` command lines of all runs of the recipe
    left_out: variants not run, each with the variable it needs
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def reproduce(
    name_or_path: str | Path,
    *,
    scale: str | None = None,
    output: Path = Path("reports"),
    runs_dir: Path = Path("runs"),
    jobs: int | None = None,
    data_path: Path | None = None,
    dry_run: bool = False,
    only_report: bool = False,
    echo: Echo = print,
) -> ReproduceResult:
    """Train what a recipe lacks and write its report to `output`/NAME.

    name_or_path: a recipe's name or file
    scale: one that the recipe lists, by default the recipe's own; another scale than that writes to
        `output`/NAME-SCALE, so that a quick trial never replaces the report
    runs_dir: run folders go to `runs_dir`/NAME/SCALE/
    jobs: runs trained at a time, by default one a core
    data_path: prepared data for the variants that need it; without it they are left out
    dry_run: print the commands and do nothing
    only_report: make the report from the records that exist, train nothing
    UserError for an unknown recipe or scale, OdistError naming the runs that failed, Interrupted.
    """
    recipe = load_recipe(name_or_path)
    scale = recipe.scale if scale is None else scale
    if data_path is not None and not data_path.is_dir():
        raise UserError(f"{data_path}: no such folder of prepared data. `odist prepare` makes one.")
    variables = {} if data_path is None else {"data_path": str(data_path.resolve())}
    plan, left_out = recipe.plan(scale, variables=variables)
    folder = output / (recipe.name if scale == recipe.scale else f"{recipe.name}-{scale}")
    paths = [runs_dir / recipe.name / scale / run.name for run in plan]
    commands = [_command(run, path) for run, path in zip(plan, paths, strict=True)]
    for variant, variable in left_out.items():
        echo(f"left out: variant {variant}, which needs --{variable.replace('_', '-')}")
    if dry_run:
        for command in commands:
            echo("odist " + " ".join(command[3:]))
        return ReproduceResult(folder, commands=commands, left_out=left_out)
    if not only_report:
        _train(plan, paths=paths, commands=commands, jobs=jobs or os.cpu_count() or 1, echo=echo)
        _record(recipe, plan, paths=paths, folder=folder)
    from odist.report.page import build_report

    files = build_report(folder, name=recipe.name)
    echo(f"report: {folder / recipe.name}.md")
    return ReproduceResult(folder, files=files, commands=commands, left_out=left_out)


def _record(recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path], folder: Path) -> None:
    """Write the recipe and its records into the report's folder; records of no planned run are removed.

    Records of variants left out this time stay: they were made where their data lay.
    """
    from odist.report.record import write_records

    folder.mkdir(parents=True, exist_ok=True)
    written = write_records(recipe.name, plan, runs=[Run.open(path) for path in paths], folder=folder / "runs")
    variants = {run.variant for run in plan}
    for path in (folder / "runs").glob("*.json"):
        variant = next((key for key in recipe.variants if key and path.stem.startswith(f"{key}-")), "")
        if path not in written and variant in variants:
            path.unlink()
    write_atomically(folder / "recipe.yaml", recipe.text)
