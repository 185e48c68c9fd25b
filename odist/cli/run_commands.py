"""Arguments and options of the commands that read runs: eval, churn, predict, export, plot, runs, show.

What a command needs is imported inside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from odist.cli.options import (
    Axis,
    BadRows,
    Device,
    ExportFormat,
    JsonOption,
    Sort,
    Split,
    SplitOption,
)


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run folders.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Evaluate on another prepared folder, made with --like.")
    ] = None,
    split: SplitOption = Split.validation,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE_OR_DIR",
            help="Write the predictions to this .csv or .parquet file, or to RUN.parquet in this folder.",
        ),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="Where to compute; without it where the run was trained, or else the CPU.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Evaluate the newest checkpoint of each run, with confidence intervals."""
    from odist.cli.eval import evaluate

    wanted = None if device is None else device.value
    evaluate(runs, split=split.value, data=data, output=output, device=wanted, json=json)


def churn(
    retrains: Annotated[
        list[str], typer.Argument(metavar="RUN_OR_FILE ...", help="Run folders, CSV or Parquet files, s3:// URLs.")
    ],
    split: SplitOption = Split.validation,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability above which a row counts as positive, for flips.")
    ] = 0.5,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Files: column of probabilities. Of several classes: what their numbered columns begin with, "
            "or repeat it for every class in order."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Files: column of labels.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Files: column that identifies each row; without it `row`, where all have it.")
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Files: match rows by their order, whatever their columns say.")
    ] = False,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice", help="Churn within each value of: decile, label, position, or a column of the first file."
        ),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            metavar="MEASURE=NUMBER",
            help="Release gate: exit with 5 if the second moved further from the first (the released one); 2x: twice the "
            "--baseline's. Repeat for several.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="Gate: churn between retrains of the released system, by `odist churn --json`."
        ),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Gate: column whose rows belong together, such as a user, for intervals.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Gate: column of the rows' weights.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Gate: also write it to a .md or JUnit .xml.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure prediction churn between retrains of one system, or gate a release: how far NEW moved from OLD."""
    from odist.cli.gate import refuse_without_limits, release
    from odist.cli.printing import as_json, print_churn
    from odist.measure.predictions import compare_retrains

    how: dict[str, Any] = {
        "split": split.value,
        "column": column or (),
        "target": target,
        "key": key,
        "by_order": no_key,
        "slices": slices or (),
        "threshold": threshold,
    }
    if limits:
        own = {"limits": limits, "baseline": baseline, "cluster": cluster, "weight": weight}
        release(retrains, report=report, json=json, **own, **how)
        return
    refuse_without_limits({"--baseline": baseline, "--cluster": cluster, "--weight": weight, "--report": report})
    result = compare_retrains(retrains, **how)
    if json:
        print(as_json(result.to_dict()))
    else:
        print_churn(result)


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    inputs: Annotated[
        list[str],
        typer.Option("--input", metavar="FILE", help="Raw rows, images or text, as of odist prepare; repeat."),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Predictions, .csv or .parquet.")],
    member: Annotated[
        str | None,
        typer.Option(metavar="MEMBER", help="As of odist export. Default: what the run predicts with."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run's prepared data, of runs that have not kept what they need of them."),
    ] = None,
    bad_rows: Annotated[
        BadRows, typer.Option(help="What to do with rows that cannot be read: count and skip them, or stop.")
    ] = BadRows.skip,
    device: Annotated[
        Device | None, typer.Option(help="Where to compute; without it where the run was trained, or else the CPU.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Predict raw rows, images or text with the preparation that the run has learnt from."""
    from odist.cli.predict import predict

    predict(
        run,
        inputs,
        output=output,
        member=member,
        like=like,
        refuse_bad=bad_rows is BadRows.refuse,
        device=None if device is None else device.value,
        json=json,
    )


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="safetensors: weights and the architecture's source. onnx. torch: a program of torch.export. hf: a folder "
            "for transformers."
        ),
    ] = ExportFormat.safetensors,
    member: Annotated[
        str | None,
        typer.Option(
            metavar="MEMBER",
            help="A group's number, or best (lowest validation loss), average (of the weights), ensemble (mean of the "
            "groups' probabilities). Default: what the run predicts with.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes. Default: RUN/export/FORMAT[-MEMBER].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the model of a run for other software; it loads without odist."""
    from odist.cli.export import export

    export(run, format_name=format.value, member=member, output=output, json=json)


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run folders, or folders of them.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the figures go.")] = Path("plots"),
    metric: Annotated[list[str] | None, typer.Option(help="Metric to draw; repeat for several.")] = None,
    x: Annotated[Axis, typer.Option(help="Horizontal axis.")] = Axis.examples,
) -> None:
    """Draw learning curves of runs, and loss against churn where there are retrains."""
    from odist.cli.plot import plot

    plot(runs, output=output, metrics=metric or None, x=x.value)


def list_runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR ...] [KEY=VALUE ...]",
            help="Folders of runs, `runs` without one; then what to keep: any key of odist train, such as task=lm, "
            "seed=1,2, optim.lr=0.1, data=criteo*, or state=finished.",
        ),
    ] = None,
    sort: Annotated[Sort, typer.Option(help="Order; newest or best first, runs without a result last.")] = Sort.path,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns to show: keys, metrics, or task, data, state ..., as in optim.lr,seed,auc."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List runs: data, state, result and what was overridden; odist runs task=lm seed=1,2 keeps some of them."""
    from odist.cli import runs

    runs.list_runs(words or [], sort=sort.value, columns=columns, json=json)


def show_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]", help="One run folder, or two to compare.")],
    json: JsonOption = False,
) -> None:
    """Explain one run, or the differences of two: configuration, data, results, teachers, time, problems."""
    from odist.cli.show import show

    show(runs, json=json)
