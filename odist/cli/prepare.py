"""`odist prepare`: raw files to the memory-mapped folder that `data=prepared data.path=...` reads."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

PLAIN_SECONDS = 5.0  # between two lines off a terminal
STEPS = {"unpack": "unpacking", "read": "reading"}

prepare_app = typer.Typer(help="Turn raw files into a folder that training reads.", no_args_is_help=True)


class SplitBy(StrEnum):
    """How the validation part is chosen."""

    time = "time"
    random = "random"


class BadRows(StrEnum):
    """What happens to rows that cannot be read."""

    refuse = "refuse"
    skip = "skip"


class Format(StrEnum):
    """How rows are written in the input."""

    auto = "auto"
    tsv = "tsv"
    csv = "csv"
    parquet = "parquet"


@prepare_app.callback()
def _prepare() -> None:
    pass


@prepare_app.command()
def criteo(
    inputs: Annotated[
        list[str], typer.Option("--input", metavar="FILE", help="File, folder or pattern; plain or gzip; repeat.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use what was fitted for this prepared folder; all rows are validation rows."),
    ] = None,
    buckets: Annotated[int | None, typer.Option(min=1, help="Embedding rows in all, by hashing.")] = None,
    split: Annotated[SplitBy | None, typer.Option(help="Validation part: the last rows, or random ones.")] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of validation rows, also with --like. \\[0.2]")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of --split random.")] = None,
    min_count: Annotated[
        int | None, typer.Option(min=0, help="Values seen less often in training become one rare value; 0: off.")
    ] = None,
    bad_rows: Annotated[BadRows | None, typer.Option(help="Rows that cannot be read.")] = None,
    input_format: Annotated[Format | None, typer.Option("--format", help="Format of the input.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Prepare Criteo display advertising rows: hashed categories, log-transformed numbers.

    Interrupted, the same command goes on where it stopped.
    """
    from odist.cli.prepare_show import print_criteo
    from odist.launch.stop import Stop
    from odist.prepare.criteo.prepare import CriteoOptions, prepare_criteo

    given: dict[str, Any] = {
        "buckets": buckets,
        "split": split,
        "validation_fraction": validation_fraction,
        "split_seed": split_seed,
        "min_count": min_count,
        "bad_rows": bad_rows,
        "format": input_format,
    }
    options = {name: getattr(value, "value", value) for name, value in given.items() if value is not None}
    _note_passed_over(inputs)
    with Stop().listening() as stop, PrepareProgress() as progress:
        report = prepare_criteo(
            inputs, output=output, like=like, options=CriteoOptions(**options), progress=progress.rows, stop=stop
        )
    print_criteo(report, output=output, like=like, json=as_json)


class Boilerplate(StrEnum):
    """Where lines are left out by C4's rules."""

    auto = "auto"
    on = "on"
    off = "off"


class Duplicates(StrEnum):
    """What is left out when it was there before."""

    auto = "auto"
    paragraphs = "paragraphs"
    documents = "documents"
    keep = "keep"


class Damaged(StrEnum):
    """What happens to input that is damaged."""

    keep = "keep"
    refuse = "refuse"


@prepare_app.command()
def commoncrawl(
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="FILE",
            help="WET, WARC, JSON lines, text, tar; pattern; wet.paths; URL; datasets:NAME; repeat.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use the tokenizer of this prepared folder; all documents are validation."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Two-letter code, or any. \\[en]")] = None,
    long_paragraph_words: Annotated[
        int | None,
        typer.Option(min=0, help="A document needs a paragraph of so many words. \\[50 for WET and WARC, else 0]"),
    ] = None,
    boilerplate: Annotated[
        Boilerplate | None, typer.Option(help="Leave out lines by C4's rules; auto: of WET and WARC.")
    ] = None,
    duplicates: Annotated[
        Duplicates | None, typer.Option(help="Leave out what is repeated; auto: paragraphs, of plain text documents.")
    ] = None,
    passage_words: Annotated[
        int | None, typer.Option(min=0, help="Plain text is cut into documents of about so many. \\[2000]")
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of validation documents, also with --like. \\[0.05]")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of their draw. \\[0]")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=5, help="Vocabulary size. \\[24006]")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sentencepiece *.model or WordPiece *.txt instead of training.")
    ] = None,
    tokenizer_sentences: Annotated[
        int | None,
        typer.Option(min=1, help="Approximate number of sentences used to train the tokenizer. \\[500000]"),
    ] = None,
    field: Annotated[str | None, typer.Option(help="Field of JSON lines and data sets. \\[text]")] = None,
    damaged: Annotated[Damaged | None, typer.Option(help="Damaged input: keep what is readable, or stop.")] = None,
    base_url: Annotated[str | None, typer.Option(help="URL or folder before the paths of a wet.paths list.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Files read at once. \\[one per core]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Prepare text for the language model: Common Crawl, or any other, to tokens.

    Interrupted, the same command goes on where it stopped, file by file.
    """
    from odist.cli.prepare_show import print_commoncrawl
    from odist.launch.stop import Stop
    from odist.prepare.text.prepare import TextOptions, prepare_commoncrawl
    from odist.prepare.text.progress import TextProgress

    given: dict[str, Any] = {key: value for key, value in locals().items() if key in TextOptions.__dataclass_fields__}
    options = {name: getattr(value, "value", value) for name, value in given.items() if value is not None}
    _note_passed_over(inputs)
    with Stop().listening() as stop, TextProgress() as progress:
        report = prepare_commoncrawl(
            inputs, output=output, like=like, options=TextOptions(**options), progress=progress.update, stop=stop
        )
    print_commoncrawl(report, output=output, like=like, json=as_json)


class BadImages(StrEnum):
    """What happens to files that are no whole image."""

    refuse = "refuse"
    skip = "skip"


@prepare_app.command()
def imagenet(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="PATH", help="Folder of train/CLASS and val/CLASS or of CLASS; tar; repeat."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead: a data set, or a folder of Parquet files.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use the classes of this prepared folder; all images are validation images."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Classes of validation images in no folder: ground truth, Kaggle's CSV, NAME CLASS."
        ),
    ] = None,
    synsets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Classes by the ground truth's number. \\[meta.mat beside it]")
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of validation images where no such part is, also with --like. \\[0.05]"),
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of their draw. \\[0]")] = None,
    short_side: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Resize larger images to this short side, as JPEG.")
    ] = None,
    decode: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Store squares of pixels instead of JPEG, for small images.")
    ] = None,
    bad: Annotated[BadImages | None, typer.Option(help="Files that are no whole image.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Parts read at once. \\[one per core]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Prepare images in classes: ImageNet, CIFAR-10, Tiny ImageNet, or any other.

    Interrupted, the same command goes on where it stopped.
    """
    from odist.cli.prepare_show import print_imagenet
    from odist.launch.stop import Stop
    from odist.prepare.images.prepare import ImageOptions, prepare_imagenet
    from odist.prepare.text.sources import DATASETS

    given: dict[str, Any] = {key: value for key, value in locals().items() if key in ImageOptions.__dataclass_fields__}
    options = {name: getattr(value, "value", value) for name, value in given.items() if value is not None}
    named = (inputs or []) + ([] if dataset is None else [DATASETS + dataset.removeprefix(DATASETS)])
    _note_passed_over(named)
    with Stop().listening() as stop, PrepareProgress(unit="images") as progress:
        report = prepare_imagenet(
            named, output=output, like=like, options=ImageOptions(**options), progress=progress.update, stop=stop
        )
    print_imagenet(report, output=output, like=like, json=as_json)


def _note_passed_over(inputs: list[str]) -> None:
    from odist.prepare.inputs import passed_over

    for text in inputs:
        note = passed_over(text)
        if note:
            print(f"note: {note}", file=sys.stderr, flush=True)


class PrepareProgress:
    """A bar on a terminal, a line every few seconds elsewhere; both on standard error. unit: what is counted"""

    def __init__(self, unit: str = "rows") -> None:
        self._unit = unit
        self._bars: Any = None
        self._task: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> PrepareProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TextColumn("{task.fields[rows]} " + self._unit),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=Console(stderr=True))
            self._task = self._bars.add_task("", total=None, rows="0")
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def rows(self, done: int, total: int, rows: int) -> None:
        """Show `done` of `total` bytes of input and the rows so far."""
        self.update("read", done, total, rows)

    def update(self, step: str, done: int, total: int, rows: int) -> None:
        """Show the step, `done` of `total` bytes of input, and the rows or images so far."""
        if self._bars is not None:
            words = STEPS[step]
            self._bars.update(self._task, description=words, completed=done, total=total or None, rows=f"{rows:,}")
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            share = f" {100 * done / total:.0f} % of {total / 1e6:,.0f} MB" if total else ""
            number = f", {rows:,} {self._unit}" if step == "read" else ""
            print(f"{STEPS[step]}{share}{number}", file=sys.stderr, flush=True)
