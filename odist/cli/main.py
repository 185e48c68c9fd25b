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
from odist.cli import recipe_commands, run_commands
from odist.cli.options import (
    Device,
    JsonOption,
    Suite,
)
from odist.cli.prepare import prepare_app
from odist.errors import Interrupted, OdistError, UserError

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


app.command("eval")(run_commands.evaluate)
app.command()(run_commands.churn)
app.command()(run_commands.predict)
app.command()(run_commands.export)
app.command()(run_commands.plot)
app.command()(recipe_commands.reproduce)
app.command()(recipe_commands.index)


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


app.command()(recipe_commands.tune)
app.command("runs")(run_commands.list_runs)
app.command("show")(run_commands.show_runs)


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
