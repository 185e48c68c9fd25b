"""What a configuration costs before a cluster is booked: bytes, operations and memory by arithmetic, hours by a model of a step.

The bytes are those of odist's own sums and snapshots. The hours are modelled: a step lasts as long as its slowest worker, and
then as long as the network needs, which nothing overlaps; asynchronous workers wait for nobody, unless the server's network is busy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from odist.config.options import options_of
from odist.config.schema import Config
from odist.engine.prediction import predict_stream
from odist.engine.problem import build_model, build_task, forward_flops, make_clock, set_up_torch
from odist.exchange import in_step
from odist.optim import Clock, Optimizer
from odist.strategies import DiLoCoOptions, LocalSGDOptions
from odist.tasks.base import Task
from odist.teachers import ModelOptions, peers_options

BYTES = 4  # of a number in fp32
PAPER_SECONDS = {64: 4.00, 128: 4.55, 256: 10.0}  # of a step of the language model: Anil et al. 2018, Figures 1a and 1b
WORKERS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in a step, on average over the processes of its group and over a reload interval.

    all_reduce: gradients within the group, as slices (exact) or as a ring (fast) alike, or the weights that local workers
        average now and then; tables: rows of embedding tables with
    sparse gradients, at most; snapshots: to the exchange; hand_on: what the process that reads them hands to the others
    predictions: with exchange=predictions at its period; otherwise were they exchanged at every step instead of snapshots. At
        most, where algorithm.top_p cuts them
    """

    all_reduce: float
    tables: float
    snapshots: float
    hand_on: float
    predictions: float


@dataclass(frozen=True)
class Plan:
    """The costs of a configuration.

    gradient_bytes: dense, in fp32; row_bytes: of the table rows that one worker's batch touches; snapshot_bytes: of a model
    flops: of a training step of one group, its teachers' forwards apart; teacher_flops: those, once they are heard
    memory: extra bytes of a process for teachers; interval: steps between reloads, or between exchanges of predictions
    agreements: sums over all workers of a group in a step, below 1 where local workers agree now and then; agreement_bytes: what
        they add up in a step, on average
    interval_like_all_reduce: interval at which the snapshots that a group reads are as many bytes as one ring over all groups
        would send over each of its links; any longer one sends less between groups
    interval_like_predictions: interval at which they are as many bytes as the peers' predictions at every step
    live: whether predictions are exchanged instead of snapshots
    pulled: bytes that a server sends to a worker in a step; served: what it sends to all workers and receives; 0 without one
    """

    parameters: int
    gradient_bytes: int
    row_bytes: int
    snapshot_bytes: int
    num_groups: int
    processes: int
    peers: int
    examples_per_step: int
    num_steps: int
    interval: int | None
    flops: float
    teacher_flops: float
    memory: int
    traffic: Traffic
    interval_like_all_reduce: float | None
    interval_like_predictions: float | None
    agreements: float
    agreement_bytes: float
    live: bool
    pulled: float = 0.0
    served: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Network:
    """What the model of a step knows of the machines.

    seconds: of one worker's forward and backward alone; straggling: deviation of its logarithm from step to step
    bandwidth: bytes a second of one worker; latency: seconds of a message
    """

    seconds: float
    straggling: float = 0.1
    bandwidth: float = 1.25e9
    latency: float = 5e-5


@dataclass(frozen=True)
class Hours:
    """Modelled, not measured: a step of so many workers in all, and the hours of the configured number of steps."""

    workers: int
    groups: int
    seconds_of_step: float
    hours: float


def make_plan(config: Config, *, processes: int | None = None) -> Plan:
    """Count what a run of `config` costs.

    processes: of a group; None: as the configuration has it, or its workers where it trains in one process
    """
    set_up_torch(config)
    task = build_task(config)
    clock = make_clock(config, task)
    model = build_model(config, task, group=0)
    Optimizer(model, config.optim, clock=clock)  # which gradients are sparse is its choice
    return plan_of(config, task=task, clock=clock, model=model, processes=processes)


def plan_of(config: Config, *, task: Task, clock: Clock, model: Any, processes: int | None = None) -> Plan:
    """As `make_plan`, of parts that are there already; the model's gradients are lost."""
    forward = forward_flops(config, task, model)
    options = peers_options(config)
    degree = config.num_groups - 1
    if options is not None and options.topology != "all":
        degree = min(options.degree, degree)
    peers = 0 if options is None else degree + int(options.include_self)
    live = in_step(config)  # predictions travel, and no teacher predicts
    interval = None if options is None else max(1, clock.steps(options.period if live else options.interval))
    size = processes or (config.launch.processes if config.launch.processes > 1 else config.workers)
    dense = sum(BYTES * parameter.numel() for parameter in _dense(model))
    rows = _row_bytes(config, task, model)
    snapshot = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    prediction = _prediction_bytes(config, task, model)
    examples = clock.examples_per_step
    ring = 2 * (size - 1) / size
    synchronous, averages = agreements(config, clock)
    whole = sum(value.numel() * BYTES for value in model.state_dict().values() if value.is_floating_point())
    # asynchronous workers push a gradient and are sent the weights
    served = config.algorithm.strategy in ("delayed", "parameter_server")
    traffic = Traffic(
        all_reduce=dense + whole if served else ring * (synchronous * dense + averages * whole),
        tables=rows if served else synchronous * ((size - 1) / size * rows + (size - 1) * rows),
        snapshots=0.0 if interval is None or live else snapshot / interval / size,
        hand_on=0.0 if interval is None or live else peers * snapshot * (size - 1) / interval / size,
        predictions=peers * examples / size * prediction / (interval if live and interval else 1),
    )
    everybody = config.num_groups * size
    one_ring = 2 * (everybody - 1) / everybody * dense
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gradient_bytes=dense,
        row_bytes=rows,
        snapshot_bytes=snapshot,
        num_groups=config.num_groups,
        processes=size,
        peers=peers,
        examples_per_step=examples,
        num_steps=clock.num_steps,
        interval=interval,
        flops=3 * forward * examples,
        teacher_flops=peers * forward * examples if options is not None and options.predicts and not live else 0.0,
        memory=round(peers * examples / size * prediction) if live else peers * snapshot,
        traffic=traffic,
        interval_like_all_reduce=peers * snapshot / one_ring if peers and one_ring else None,
        interval_like_predictions=snapshot / (examples * prediction) if peers else None,
        agreements=synchronous + averages,
        agreement_bytes=synchronous * dense + averages * whole,
        live=live,
        pulled=whole if served else 0.0,
        served=config.workers * (traffic.all_reduce + traffic.tables) if served else 0.0,
    )


def agreements(config: Config, clock: Clock) -> tuple[float, float]:
    """How often the workers of a group hear each other in a step: share of sums of gradients, and means of all weights."""
    options, steps = options_of(config, "strategies"), clock.num_steps
    if not isinstance(options, LocalSGDOptions):
        return 1.0, 0.0
    synchronous = round(options.sync_share * steps)
    every = max(1, clock.steps(options.average_every))
    averages = steps // every - synchronous // every
    last = isinstance(options, DiLoCoOptions) and steps % every > 0 and synchronous < steps
    return synchronous / steps, (averages + last) / steps


def bytes_sent(plan: Plan, *, published: int) -> int:
    """Bytes that a worker sends in a whole run, were each a process. plan: of as many processes; published: snapshots of a group"""
    within = (plan.traffic.all_reduce + plan.traffic.tables) * plan.num_steps
    between = plan.snapshot_bytes * published * (1 + plan.peers * (plan.processes - 1)) / plan.processes
    return round(within + between)


def _dense(model: Any) -> list[Any]:
    sparse = {id(module.weight) for module in model.modules() if getattr(module, "sparse", False)}
    return [parameter for parameter in model.parameters() if id(parameter) not in sparse]


def _row_bytes(config: Config, task: Any, model: Any) -> int:
    """Bytes of the sparse gradients of one worker's batch, rows and their numbers: of one real backward."""
    if len(_dense(model)) == len(list(model.parameters())):
        return 0
    ids = task.evaluation_order("validation", rows=None, batch_size=config.train.batch).ids(0)
    batch = task.batch(ids, "validation").to(config.launch.device)
    logits, _ = task.forward(model, batch, None)
    task.loss(logits, batch, None).total.backward()
    total = 0
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            gradient = parameter.grad.coalesce()
            total += gradient.values().numel() * BYTES + gradient.indices().numel() * 8
    model.zero_grad(set_to_none=True)
    return total


def _prediction_bytes(config: Config, task: Any, model: Any) -> float:
    """Bytes of what a model predicts for one example: one number, the classes, or those of every token of a sequence.

    Of classes that are cut to the likeliest, each is a number and a logit, and each row has a count.
    """
    size = config.train.batch
    order = task.evaluation_order("validation", rows=size, batch_size=size)
    logits, batch = next(predict_stream(task, model, order, 0, split="validation", device=config.launch.device))
    options = options_of(config, "teachers")
    cut = isinstance(options, ModelOptions) and (options.top_k, options.top_p) != (None, None)
    if not cut or logits.ndim < 2:
        return float(logits.numel() * BYTES / len(batch.targets))
    classes = min(options.top_k or logits.shape[-1], logits.shape[-1])
    return float(logits[..., 0].numel() * (2 * classes + 1) * BYTES / len(batch.targets))


def slowest(workers: int, *, straggling: float) -> float:
    """Expected largest of `workers` log-normal times whose mean is 1 and whose logarithm deviates by `straggling`.

    The mean of the quantiles that the largest of n draws takes: F(x)^n is uniform.
    """
    shares = (np.arange(2000) + 0.5) / 2000
    normal = NormalDist()
    quantiles = [normal.inv_cdf(float(share)) for share in shares ** (1 / workers)]
    return float(np.mean(np.exp(straggling * np.array(quantiles) - 0.5 * straggling**2)))


def step_seconds(plan: Plan, network: Network, *, workers: int) -> float:
    """Modelled seconds of a step of one group of `workers`: its slowest worker, then a ring of what they add up.

    Workers that agree only every few steps wait for the slowest of as many steps together, whose sum deviates less. Those of a server
    take as long as one on average, or as the server needs to send all of them its weights, which is more than they send.
    """
    teachers = 1 + plan.teacher_flops / plan.flops
    if plan.served:
        own = (plan.traffic.all_reduce + plan.traffic.tables) / network.bandwidth + 2 * network.latency
        return max(network.seconds * teachers + own, workers * plan.pulled / network.bandwidth)
    straggling = network.straggling * math.sqrt(plan.agreements)
    compute = network.seconds * teachers * slowest(workers, straggling=straggling)
    rounds = 2 * (workers - 1)
    sending = rounds / workers * plan.agreement_bytes / network.bandwidth
    return compute + sending + plan.agreements * rounds * network.latency


def modelled_hours(plan: Plan, network: Network, *, workers: Sequence[int] = WORKERS) -> list[Hours]:
    """One group of all workers, and the plan's groups of as many in all, for each number of workers.

    A group of its own pays no teacher; snapshots travel beside the steps.
    """
    alone = replace(plan, teacher_flops=0.0)
    found = []
    for number in workers:
        sides = [(alone, 1)] + (
            [(plan, plan.num_groups)] if plan.num_groups > 1 and number % plan.num_groups == 0 else []
        )
        for side, groups in sides:
            seconds = step_seconds(side, network, workers=number // groups)
            found.append(Hours(number, groups, seconds, seconds * plan.num_steps / 3600))
    return found


def beside_the_paper(plan: Plan, network: Network) -> dict[str, list[float]]:
    """How much longer a step becomes from 64 to 128 and from 128 to 256 workers: modelled, and in the paper."""
    sizes = sorted(PAPER_SECONDS)
    modelled = [step_seconds(plan, network, workers=size) for size in sizes]
    paper = [PAPER_SECONDS[size] for size in sizes]

    def ratios(values: list[float]) -> list[float]:
        return [after / before for before, after in pairwise(values)]

    return {"modelled": ratios(modelled), "paper": ratios(paper)}
