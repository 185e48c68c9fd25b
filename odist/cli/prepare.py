"""`odist prepare`: raw files to the memory-mapped folder that `data=prepared data.path=...` reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from odist.cli.prepare_options import with_options
from odist.prepare.criteo.options import CriteoChoices, CriteoOptions
from odist.prepare.images.options import ImageChoices, ImageOptions
from odist.prepare.table.options import TableChoices, TableOptions
from odist.prepare.text.options import TextChoices, TextOptions

prepare_app = typer.Typer(help="Turn raw files into a folder that training reads.", no_args_is_help=True)

OutputOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@prepare_app.callback()
def _prepare() -> None:
    pass


@prepare_app.command()
@with_options(CriteoChoices())
def criteo(
    *,
    inputs: Annotated[
        list[str], typer.Option("--input", metavar="FILE", help="File, folder or pattern; plain or gzip; repeat.")
    ],
    output: OutputOption,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use what was fitted for this prepared folder; all rows are validation rows."),
    ] = None,
    options: CriteoOptions,
    as_json: JsonOption = False,
) -> None:
    """Prepare Criteo display advertising rows: hashed categories, log-transformed numbers.

    Interrupted, the same command goes on where it stopped.
    """
    from odist.cli.prepare_progress import PrepareProgress
    from odist.cli.prepare_show import print_criteo
    from odist.launch.stop import Stop
    from odist.prepare.criteo.prepare import prepare_criteo

    _note_passed_over(inputs)
    with Stop().listening() as stop, PrepareProgress() as progress:
        report = prepare_criteo(inputs, output=output, like=like, options=options, progress=progress, stop=stop)
    print_criteo(report, output=output, like=like, json=as_json)


@prepare_app.command()
@with_options(TableChoices())
def table(
    *,
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="FILE", help="Parquet, or text with a header; folder or pattern; repeat."),
    ],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make.")] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use what was fitted for this prepared folder; all rows are validation rows."),
    ] = None,
    options: TableOptions,
    print_schema: Annotated[
        bool, typer.Option("--print-schema", help="Draft a schema from the columns of the input, and print it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare any table of clicks: numeric and categorical columns, labels, weight, time and key, by a schema.

    Interrupted, the same command goes on where it stopped.
    """
    from odist.cli.prepare_progress import PrepareProgress
    from odist.cli.prepare_show import print_table_report
    from odist.errors import UserError
    from odist.launch.stop import Stop
    from odist.prepare.table.prepare import draft_schema, prepare_table

    _note_passed_over(inputs)
    if print_schema:
        print(draft_schema(inputs, format_name=options.format or "auto"), end="")
        return
    if output is None:
        raise UserError("no --output. Name the folder to make, such as --output data/mine.")
    with Stop().listening() as stop, PrepareProgress() as progress:
        report = prepare_table(inputs, output=output, like=like, options=options, progress=progress, stop=stop)
    print_table_report(report, output=output, like=like, json=as_json)


@prepare_app.command("commoncrawl", hidden=True, help="The name of `odist prepare text` in earlier versions.")
@prepare_app.command()
@with_options(TextChoices())
def text(
    *,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="FILE",
            help="WET, WARC, JSON lines, text, tar; pattern; wet.paths; URL; datasets:NAME; repeat.",
        ),
    ],
    output: OutputOption,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use the tokenizer of this prepared folder; all documents are validation."),
    ] = None,
    options: TextOptions,
    as_json: JsonOption = False,
) -> None:
    """Prepare text for the language model: Common Crawl, or any other, to tokens.

    Interrupted, the same command goes on where it stopped, file by file.
    """
    from odist.cli.prepare_progress import PrepareProgress
    from odist.cli.prepare_show import print_text
    from odist.launch.stop import Stop
    from odist.prepare.text.prepare import prepare_text

    _note_passed_over(inputs)
    with Stop().listening() as stop, PrepareProgress(speed=True) as progress:
        report = prepare_text(inputs, output=output, like=like, options=options, progress=progress, stop=stop)
    print_text(report, output=output, like=like, json=as_json)


@prepare_app.command()
@with_options(ImageChoices())
def imagenet(
    *,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="PATH", help="Folder of train/CLASS and val/CLASS or of CLASS; tar; repeat."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead: a data set, or a folder of Parquet files.")
    ] = None,
    output: OutputOption,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use the classes of this prepared folder; all images are validation images."),
    ] = None,
    options: ImageOptions,
    as_json: JsonOption = False,
) -> None:
    """Prepare images in classes: ImageNet, CIFAR-10, Tiny ImageNet, or any other.

    Interrupted, the same command goes on where it stopped.
    """
    from odist.cli.prepare_progress import PrepareProgress
    from odist.cli.prepare_show import print_imagenet
    from odist.launch.stop import Stop
    from odist.prepare.datasets import DATASETS
    from odist.prepare.images.prepare import prepare_imagenet

    named = (inputs or []) + ([] if dataset is None else [DATASETS + dataset.removeprefix(DATASETS)])
    _note_passed_over(named)
    with Stop().listening() as stop, PrepareProgress() as progress:
        report = prepare_imagenet(named, output=output, like=like, options=options, progress=progress, stop=stop)
    print_imagenet(report, output=output, like=like, json=as_json)


def _note_passed_over(inputs: list[str]) -> None:
    from odist.prepare.inputs import passed_over

    for text in inputs:
        note = passed_over(text)
        if note:
            print(f"note: {note}", file=sys.stderr, flush=True)
