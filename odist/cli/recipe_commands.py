"""Arguments and options of the commands that work on recipes: reproduce, index, tune.

What a command needs is imported inside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from odist.cli.options import (
    DataPathOption,
    JobsOption,
    RecipeArgument,
    ReportsOption,
    RunsDirOption,
    ScaleOption,
    VariantOption,
)
from odist.run.provenance import num_cores


def reproduce(
    name: RecipeArgument,
    scale: ScaleOption = None,
    jobs: JobsOption = None,
    data_path: DataPathOption = None,
    variant: VariantOption = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Rebuild the report from existing records; train nothing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and do nothing.")] = False,
    keep_checkpoints: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoints", help="Keep those of finished runs, too; without it only teachers keep them."
        ),
    ] = False,
    output: ReportsOption = Path("reports"),
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Train every run of a recipe that is missing, then write its table and figure."""
    from odist.claims.reproduce import reproduce

    reproduce(
        name,
        scale=None if scale is None else scale.value,
        output=output,
        runs_dir=runs_dir,
        jobs=jobs or num_cores(),
        data_path=data_path,
        variants=variant or (),
        dry_run=dry_run,
        only_report=report_only,
        keep_checkpoints=keep_checkpoints,
    )


def index(
    output: ReportsOption = Path("reports"),
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also renew the table between the markers of this file.")
    ] = None,
) -> None:
    """Write one page of all reports, index.html: every row of the paper beside what was found; train nothing."""
    from odist.claims.index import build_index

    for path in build_index(output, readme=readme):
        print(f"written: {path}")


def tune(
    name: RecipeArgument,
    scale: ScaleOption = None,
    jobs: JobsOption = None,
    data_path: DataPathOption = None,
    variant: VariantOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Take no trial from tuning.jsonl, where they lie recorded.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the first commands and do nothing.")] = False,
    output: ReportsOption = Path("reports"),
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Choose the learning rate of every system of a recipe, on rows and seeds that are not reported."""
    from odist.claims.tune import tune

    result = tune(
        name,
        scale=None if scale is None else scale.value,
        output=output,
        runs_dir=runs_dir,
        jobs=jobs or num_cores(),
        data_path=data_path,
        variants=variant or (),
        again=again,
        dry_run=dry_run,
    )
    if not dry_run:
        print(f"written: {result.path}; `odist reproduce {name}` uses it")
