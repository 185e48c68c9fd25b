"""`odist plan`: what a configuration costs on a cluster, counted and modelled, before one is booked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from odist.cli.printing import as_json, number, print_table
from odist.config.composed import composed
from odist.errors import UserError
from odist.launch import launch
from odist.launch.plan import Hours, Network, Plan, beside_the_paper, make_plan, modelled_hours

GIGABIT = 1e9 / 8
MICROSECOND = 1e-6


def plan(
    overrides: Sequence[str],
    *,
    processes: int | None,
    workers: Sequence[int],
    seconds: float | None,
    flops: float,
    straggling: float,
    bandwidth: float,
    latency: float,
    output: Path | None,
    json: bool,
) -> None:
    """Print what `odist train` with these overrides costs.

    processes: of a group; workers: in all, for the modelled hours; seconds: measured, of one worker's step alone; flops:
    operations a second of one worker where none was measured; bandwidth: gigabits a second; latency: microseconds
    output: a figure of the modelled hours
    """
    content = composed(overrides)
    if content is None:
        raise UserError(
            f"{' '.join(overrides)}: cannot be composed. `odist train {' '.join(overrides)} --cfg job` says what is wrong."
        )
    found = make_plan(launch.prepare_config(content), processes=processes)
    own = seconds if seconds is not None else found.flops / max(1, int(content["workers"])) / flops
    network = Network(own, straggling, bandwidth * GIGABIT, latency * MICROSECOND)
    hours = modelled_hours(found, network, workers=workers)
    paper = beside_the_paper(found, network)
    if output is not None:
        from odist.claims.hours_figure import draw_hours

        draw_hours(output, {(one.workers, one.groups): one.hours for one in hours})
    if json:
        modelled = [
            {"workers": h.workers, "groups": h.groups, "seconds_of_step": h.seconds_of_step, "hours": h.hours}
            for h in hours
        ]
        print(as_json({**found.to_dict(), "modelled": modelled, "longer_steps": paper}))
        return
    _print_counts(found)
    measured = "as measured" if seconds is not None else f"from {flops:.3g} operations a second"
    print(
        f"\nModelled, not measured: {own:.4g} s for a worker's step alone ({measured}), slower by chance with a deviation of "
        f"{straggling:g}, {bandwidth:g} Gbit/s, {latency:g} us a message; {found.num_steps:,} steps, whatever the workers."
    )
    print_table(_lines(hours), right={"workers", "seconds a step", "hours"})
    ratios = {who: " and ".join(f"{ratio:.2f}" for ratio in values) for who, values in paper.items()}
    print(
        f"from 64 to 128 and from 128 to 256 workers a step becomes {ratios['modelled']} times as long; in the paper {ratios['paper']}."
    )


def _print_counts(found: Plan) -> None:
    traffic = found.traffic
    rows = [
        ("parameters", f"{found.parameters:,}"),
        ("groups, processes of each, peers of each", f"{found.num_groups}, {found.processes}, {found.peers}"),
        ("operations of a step of a group", f"{found.flops:.3g}"),
        ("... of its teachers", f"{found.teacher_flops:.3g} (+{found.teacher_flops / found.flops:.0%})"),
        ("memory of a process for its teachers", megabytes(found.memory)),
        ("a process sends in a step: gradients, or weights that it averages", megabytes(traffic.all_reduce)),
        ("... rows of embedding tables, at most", megabytes(traffic.tables)),
        *([("the server of a group sends and receives in a step", megabytes(found.served))] if found.served else []),
        ("... snapshots to the exchange", megabytes(traffic.snapshots)),
        ("... snapshots handed on in the group", megabytes(traffic.hand_on)),
        (
            "... predictions" if found.live else "... predictions, were they exchanged instead",
            megabytes(traffic.predictions),
        ),
        (
            "predictions every" if found.live else "a snapshot, every",
            f"{'' if found.live else megabytes(found.snapshot_bytes) + ', '}{found.interval or '-'} steps",
        ),
        ("snapshots cost what one ring over all groups does every", _steps(found.interval_like_all_reduce)),
        ("... what predictions at every step do, every", _steps(found.interval_like_predictions)),
    ]
    print_table([{"": name, "counted": value} for name, value in rows], right=set())


def _steps(interval: float | None) -> str:
    return "-" if interval is None else f"{number(interval)} steps"


def megabytes(size: float) -> str:
    """Bytes in megabytes of a million."""
    return f"{size / 1e6:,.4g} MB"


def _lines(hours: Sequence[Hours]) -> list[dict[str, str]]:
    return [
        {
            "workers": str(one.workers),
            "groups": f"{one.groups} of {one.workers // one.groups}",
            "seconds a step": number(one.seconds_of_step),
            "hours": number(one.hours),
        }
        for one in hours
    ]
