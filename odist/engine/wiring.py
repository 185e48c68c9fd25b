"""One group of a run put together: strategy, teacher, exchange and trainer from a configuration.

Every part makes itself from its own options and from what a part of its kind may use; none is known here by name.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from odist import registry
from odist.config.groups import of_group
from odist.config.options import options_of
from odist.config.schema import Config, ImageNetConfig
from odist.data.loader import Loader
from odist.data.order import order_seed
from odist.engine.average import GroupsMean, WeightAverage, decay_of
from odist.engine.devices import with_threads
from odist.engine.finished import load_first_weights, load_teachers, predictor
from odist.engine.precision import as_teacher
from odist.engine.problem import build_model, forward_flops
from odist.engine.saving import Saver
from odist.engine.trainer import CROSS_ENTROPIES, Cadence, Trainer
from odist.errors import UserError
from odist.exchange.base import Exchange, ExchangeSetup, Published, Schedule, Shown, Weights
from odist.losses import check_range
from odist.measure.prediction_files import data_fingerprint
from odist.mesh import Mesh
from odist.optim import Clock, Optimizer
from odist.run.copies import Copy
from odist.run.folder import Run
from odist.run.log import MetricsLog
from odist.strategies.base import Scheduled, Strategy, StrategySetup, Unit, units_of
from odist.tasks.base import Batch, Forward, Task
from odist.teachers import peers_options
from odist.teachers.base import Batches, Teacher, TeacherSetup


@dataclass
class Parts:
    """What the groups of one process share.

    stop: asked by whoever waits; published, shown: in memory, for groups that take turns; exchanges, savers: opened so far
    links: in the process of a worker, its connections to its group's server and the server's shards
    """

    config: Config
    run: Run
    task: Task
    clock: Clock
    log: MetricsLog
    stop: Callable[[], bool]
    published: Published = field(default_factory=dict)
    shown: Shown = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)
    savers: list[Saver] = field(default_factory=list)
    links: Sequence[object] = ()

    def saver(self, group: int) -> Saver:
        """What writes a group's checkpoints; it is closed with these parts."""
        url = self.config.train.checkpoint_copy
        self.savers.append(Saver(self.run, group, copy=None if url is None else Copy(url, self.run)))
        return self.savers[-1]

    def close(self) -> None:
        """Close what was opened: first the savers, then the exchanges, then the log; each even if one before it fails."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.log.close)  # called in the opposite order
            for end in reversed(self.exchanges):
                closing.callback(end.close)
            for saver in reversed(self.savers):
                closing.callback(saver.close)


def build_trainer(parts: Parts, mesh: Mesh, *, stop: Callable[[int], bool], start: int = 0) -> Trainer:
    """Put one group together, or one process's share of it.

    start: completed steps of the checkpoint that the caller loads next; 0: of none
    """
    config, task, clock, group = parts.config, parts.task, parts.clock, mesh.group.index
    device = config.launch.device
    model = build_model(config, task, group=group)
    if start == 0 and config.train.init_from is not None:
        load_first_weights(config.train.init_from, config, model, group=group)
    optimizer = Optimizer(model, of_group(config, group).optim, clock=clock)
    setup = StrategySetup(
        mesh, clock, seed=config.seed, batch=config.train.batch, folder=parts.run.path, links=parts.links
    )
    strategy = build_strategy(config, setup)
    strategy.prepare(model, optimizer)
    order = task.order(
        group=group,
        num_groups=config.num_groups,
        examples_per_step=config.train.batch * config.workers,
        seed=order_seed(config.seed, group=group, partition=config.data.partition),
    )

    def batches_of(units: Sequence[Unit]) -> list[Batch]:
        ids = {number: np.split(order.ids(number), mesh.workers) for number in {unit.batch for unit in units}}
        made = [task.batch(ids[unit.batch][unit.worker], "train").staged(device) for unit in units]
        if task.main_metric in CROSS_ENTROPIES:
            for unit, batch in zip(units, made, strict=True):
                _check_labels(config, batch, ids[unit.batch][unit.worker])
        return made

    def rows(step: int, worker: int) -> np.ndarray:
        if isinstance(strategy, Scheduled):
            raise UserError(
                "algorithm.teachers: a file of predictions needs workers that read one batch a step each. Type "
                "algorithm.speeds=none without algorithm.events, or name a run."
            )
        return np.split(order.ids(step), mesh.workers)[worker]

    def batches(step: int) -> list[Batch]:
        return batches_of(units_of(strategy, mesh, step=step))

    def first_batch(step: int) -> Batch:
        return batches_of([Unit(0, step)])[0].to(device)

    train, peers = config.train, peers_options(config)
    task_config = with_threads(config).task
    builders = 2 if isinstance(task_config, ImageNetConfig) and (task_config.threads or 1) > 1 else 1
    average = build_average(config, model, clock=clock, forward=task.forward, batch_at=first_batch)
    teacher = build_teacher(parts, mesh, model=model, batches=lambda step: loader[step], rows=rows, average=average)
    beyond = bool(parts.links)  # a fast worker makes more steps than the others
    loader = Loader(
        batches,
        num_steps=sys.maxsize if beyond else clock.num_steps,
        prefetch=train.prefetch,
        keep=teacher.lookahead,
        builders=builders,
    )
    return Trainer(
        task=task,
        model=model,
        strategy=strategy,
        teacher=teacher,
        optimizer=optimizer,
        loader=loader,
        mesh=mesh,
        clock=clock,
        cadence=Cadence(
            evaluate=clock.steps(train.evaluate_every),
            checkpoint=clock.steps(train.checkpoint_every),
            log=clock.steps(train.log_every) or max(1, clock.num_steps // 100),
            evaluate_rows=train.evaluate_rows,
            evaluate_batch=train.evaluate_batch,
            keep_evaluations=train.keep_evaluations and predictor(config) == "mean",
        ),
        run=parts.run,
        saver=parts.saver(group),
        log=parts.log,
        seed=config.seed,
        stop=stop,
        device=device,
        average=average,
        publish_average=peers is not None and peers.publish == "average",
    )


def build_average(
    config: Config, model: nn.Module, *, clock: Clock, forward: Forward, batch_at: Callable[[int], Batch]
) -> WeightAverage | None:
    """The average that predicts in place of the weights; None where the weights themselves do.

    batch_at: step -> a batch that every process of the group has or can make
    """
    train, horizon = config.train, clock.horizon
    if train.average == "none":
        return None
    if train.average == "groups":
        return GroupsMean(model, forward=forward, batch_at=batch_at)
    begin = train.average_from if train.average_from is not None else horizon * 3 // 4 if train.average == "swa" else 0
    if begin >= horizon:
        raise UserError(
            f"train.average_from={begin}: the run ends after {horizon} examples, so nothing would be averaged."
        )
    decay = decay_of(train.average_horizon or horizon / 10, examples_per_step=clock.examples_per_step)
    return WeightAverage(
        model,
        forward=forward,
        batch_at=batch_at,
        start=clock.steps(begin),
        decay=decay if train.average == "ema" else None,
    )


def _check_labels(config: Config, batch: Batch, ids: np.ndarray) -> None:
    """Refuse labels that have no loss, here where their rows are known and no accelerator has to be waited for."""
    highest = 1 if batch.targets.is_floating_point() else math.inf
    try:
        check_range(batch.targets, highest=highest)
    except UserError as error:
        outside = ~((batch.targets >= 0) & (batch.targets <= highest))
        example = int(outside.flatten().nonzero()[0, 0]) * len(ids) // batch.targets.numel()
        row = np.asarray(ids).reshape(len(ids), -1)[example, 0]
        raise UserError(f"{config.data.path or config.data.name}: training row {row}: {error}") from None


def build_strategy(config: Config, setup: StrategySetup) -> Strategy:
    """The strategy that the configuration names."""
    strategy: Strategy = registry.find("strategies", config.algorithm.strategy).of(
        options_of(config, "strategies"), setup
    )
    return strategy


def build_teacher(
    parts: Parts,
    mesh: Mesh,
    *,
    model: nn.Module,
    batches: Batches,
    rows: Callable[[int, int], np.ndarray],
    average: WeightAverage | None = None,
) -> Teacher:
    """The teacher that the configuration names.

    batches: of its group, in memory; rows: step, worker -> those of its batch; average: predicts for the group
    """
    config, task, device = parts.config, parts.task, parts.config.launch.device
    own = of_group(config, mesh.group.index).model

    def build_peer(peer: int) -> nn.Module:
        alike = of_group(config, peer).model == own
        return as_teacher(copy.deepcopy(model) if alike else build_model(config, task, group=peer), config)

    @functools.cache
    def relative_cost(peer: int) -> float:
        if of_group(config, peer).model == own:
            return 1.0
        return forward_flops(config, task, build_peer(peer)) / forward_flops(config, task, model)

    setup = TeacherSetup(
        task=task,
        student=model,
        build_peer=build_peer,
        relative_cost=relative_cost,
        mesh=mesh,
        seed=config.seed,
        clock=parts.clock,
        batches=lambda step: [batch.to(device) for batch in batches(step)],
        rows=rows,
        load_models=lambda paths: [as_teacher(one, config) for one in load_teachers(paths, config, task)],
        training_rows=data_fingerprint("train", task.fingerprint),
        open_exchange=lambda peers, schedule: open_exchange(parts, mesh, model=model, peers=peers, schedule=schedule),
        stop=parts.stop,
        **({"keep_mean": average.keep} if isinstance(average, GroupsMean) else {}),
    )
    teacher: Teacher = registry.find("teachers", config.algorithm.teacher).of(options_of(config, "teachers"), setup)
    return teacher


def open_exchange(parts: Parts, mesh: Mesh, *, model: nn.Module, peers: Sequence[int], schedule: Schedule) -> Exchange:
    """One group's end of the exchange that the configuration names; it is closed with `parts`."""
    config, run, group = parts.config, parts.run, mesh.group.index

    known = {repr(of_group(config, group).model): dict(model.state_dict())}

    def weights_of(peer: int) -> Weights:
        kind = repr(of_group(config, peer).model)
        if kind not in known:
            known[kind] = dict(build_model(config, parts.task, group=peer).state_dict())
        return known[kind]

    setup = ExchangeSetup(
        group=group,
        peers=peers,
        schedule=schedule,
        folder=run.path,
        run=run.env.get("run_id") or run.name,
        num_steps=parts.clock.num_steps,
        weights_of=weights_of,
        is_writer=mesh.is_writer,
        publishes=mesh.publishes,
        # the oldest kept one: if newer ones are damaged, the group goes back to it
        last_checkpoint=lambda: min(run.checkpoint_steps(group), default=-1),
        published=parts.published,
        num_groups=config.num_groups,
        shown=parts.shown,
        across=mesh.across,
    )
    end: Exchange = registry.find("exchange", config.exchange.name).of(options_of(config, "exchange"), setup)
    parts.exchanges.append(end)
    return end
