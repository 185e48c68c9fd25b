"""The command line: `odist train|eval|churn|plot|prepare|reproduce|tune|bench|runs|show ...`.

Declares arguments and options. What a verb needs is imported inside it, so that `odist --help` and tab completion load
neither torch nor Hydra.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from odist import __version__
from odist.cli.options import (
    Axis,
    BadRows,
    DataPathOption,
    Device,
    ExportFormat,
    JobsOption,
    JsonOption,
    RecipeArgument,
    ReportsOption,
    RunsDirOption,
    ScaleOption,
    Sort,
    Split,
    SplitOption,
    Suite,
    VariantOption,
)
from odist.cli.prepare import prepare_app
from odist.errors import Interrupted, OdistError, UserError
from odist.run.provenance import num_cores

app = typer.Typer(
    name="odist",
    help="Online distillation (codistillation) and its baselines: train, evaluate, compare, reproduce.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(prepare_app, name="prepare")

NO_PLACE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)  # of names that only a user can have typed


def _version(wanted: bool) -> None:
    if wanted:
        print(f"odist {__version__}")
        raise typer.Exit


def _overrides(incomplete: str) -> list[str]:
    from odist.cli.completion import complete_overrides

    return complete_overrides(incomplete)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="",
)
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE ...", help="See odist train --help.", autocompletion=_overrides),
    ] = None,
) -> None:
    """Train, or continue, one run: odist train algorithm=codistill seed=1. With -m every combination of a,b,c."""
    from odist.cli.train import train

    train(list(overrides or []))


@app.command("eval")
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run folders, or folders of them.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the figures go.")] = Path("plots"),
    metric: Annotated[list[str] | None, typer.Option(help="Metric to draw; repeat for several.")] = None,
    x: Annotated[Axis, typer.Option(help="Horizontal axis.")] = Axis.examples,
) -> None:
    """Draw learning curves of runs, and loss against churn where there are retrains."""
    from odist.cli.plot import plot

    plot(runs, output=output, metrics=metric or None, x=x.value)


@app.command()
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


@app.command()
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


@app.command()
def plan(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="As of odist train.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes of a group. Default: its workers.")] = None,
    workers: Annotated[list[int] | None, typer.Option(min=1, help="Workers in all, for the hours; repeat it.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Measured seconds of one worker's step alone.")] = None,
    flops: Annotated[
        float, typer.Option(min=1, help="Operations a second of a worker where none was measured.")
    ] = 5e13,
    straggling: Annotated[float, typer.Option(min=0, help="Deviation of the logarithm of a worker's time.")] = 0.1,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="Gigabits a second of a worker.")] = 10.0,
    latency: Annotated[float, typer.Option(min=0, help="Microseconds of a message.")] = 50.0,
    output: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="A figure of the modelled hours.")] = None,
    json: JsonOption = False,
) -> None:
    """Count what a configuration costs on a cluster, and model its hours; train nothing."""
    from odist.cli.plan import plan

    plan(
        overrides or [],
        processes=processes,
        workers=workers or (32, 64, 128, 256),
        seconds=seconds,
        flops=flops,
        straggling=straggling,
        bandwidth=bandwidth,
        latency=latency,
        output=output,
        json=json,
    )


@app.command()
def bench(
    suite: Annotated[
        Suite,
        typer.Argument(
            help="quick: training speed of the Criteo model, about a minute. lm: the language model and its text, two minutes. "
            "teachers: steps with teachers in fp32, bf16 and int8, three minutes. images: decoding of JPEG and training of ResNet-8, a minute. cluster: "
            "gradients summed by several processes, beside plain DDP, three minutes. faults: a group beside a peer that is dead, hangs or "
            "cannot be reached, and random kills, four minutes. gpu: speed and memory of the paper-scale models "
            "on one GPU, ten minutes."
        ),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Paired measurements of everything.")] = 5,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write SUITE.json and SUITE.md into this folder.")
    ] = None,
    kills: Annotated[int | None, typer.Option(min=0, help="faults: processes that are killed, 20 without it.")] = None,
    device: Annotated[
        Device, typer.Option(help="gpu: where to compute; cpu tries the suite with small models.")
    ] = Device.cuda,
    json: JsonOption = False,
) -> None:
    """Measure speed as ratios with their goals. Missed goals are reported but do not fail the command."""
    if suite is Suite.gpu:
        from odist.bench import gpu

        path = gpu.run(device=device.value, output=output, say=lambda text: print(text, file=sys.stderr, flush=True))
        if path is not None:
            print(f"written: {path}")
        return
    from odist.bench import suite as bench
    from odist.cli.printing import as_json

    result = bench.run(suite.value, rounds=rounds, output=output, kills=kills)
    if json:
        print(as_json(result.to_dict()))
    else:
        bench.show(result)


@app.command()
def tune(
    name: RecipeArgument,
    scale: ScaleOption = None,
    jobs: JobsOption = None,
    data_path: DataPathOption = None,
    variant: VariantOption = None,
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
        dry_run=dry_run,
    )
    if not dry_run:
        print(f"written: {result.path}; `odist reproduce {name}` uses it")


@app.command("runs")
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


@app.command("show")
def show_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]", help="One run folder, or two to compare.")],
    json: JsonOption = False,
) -> None:
    """Explain one run, or the differences of two: configuration, data, results, teachers, time, problems."""
    from odist.cli.show import show

    show(runs, json=json)


def main() -> Any:
    """Run the command line; errors end it with their exit code and one message."""
    try:
        app(prog_name="odist")
    except OdistError as error:
        print(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        name = str(error.filename)
        shown = name if len(name) <= 80 else f"{name[:40]}...{name[-30:]}"
        print(f"error: {shown}: {error.strerror}.", file=sys.stderr)
        sys.exit(UserError.exit_code)


if __name__ == "__main__":
    main()
