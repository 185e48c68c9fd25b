"""Options that several verbs share, and the words that options may take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Split(StrEnum):
    """Parts of the data."""

    validation = "validation"
    train = "train"


class Device(StrEnum):
    """Where an evaluation computes."""

    cpu = "cpu"
    cuda = "cuda"


class ExportFormat(StrEnum):
    """What a model is exported as."""

    safetensors = "safetensors"
    onnx = "onnx"
    torch = "torch"
    hf = "hf"


class BadRows(StrEnum):
    """What is done with rows that cannot be read."""

    skip = "skip"
    refuse = "refuse"


class Axis(StrEnum):
    """Horizontal axes of learning curves."""

    examples = "examples"
    steps = "steps"
    seconds = "seconds"


class Sort(StrEnum):
    """Orders of `odist runs`."""

    path = "path"
    age = "age"
    metric = "metric"
    state = "state"
    algorithm = "algorithm"


class Scale(StrEnum):
    """Sizes of an experiment, see conf/scale."""

    smoke = "smoke"
    small = "small"
    medium = "medium"
    paper = "paper"


class Suite(StrEnum):
    """Measurements of `odist bench`."""

    quick = "quick"
    lm = "lm"
    teachers = "teachers"
    images = "images"
    cluster = "cluster"
    faults = "faults"
    gpu = "gpu"


def _recipe_names(incomplete: str) -> list[str]:
    from odist.claims.recipe_file import recipe_folders

    found = {path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")}
    return sorted(name for name in found if name.startswith(incomplete))


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
SplitOption = Annotated[Split, typer.Option(help="Part of the data, for run folders.")]
RecipeArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Recipe, or its file.", autocompletion=_recipe_names)
]
ScaleOption = Annotated[Scale | None, typer.Option(help="Size of the experiment. Default: the recipe's own.")]
JobsOption = Annotated[int | None, typer.Option(min=1, help="Runs at a time. Default: one per core.")]
DataPathOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Prepared folder for real data.")]
VariantOption = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="VARIANT", help="Train only this variant of the recipe; repeat for several."),
]
ReportsOption = Annotated[Path, typer.Option(metavar="DIR", help="Where the reports are.")]
RunsDirOption = Annotated[Path, typer.Option(metavar="DIR", help="Where the runs go.")]
