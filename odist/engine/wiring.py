"""Objects from a configuration: task, clock, model, strategy, teacher, exchange and trainer.

The only place that knows which options a part takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from odist import registry
from odist.config.read import load
from odist.config.schema import Config
from odist.data.loader import Loader
from odist.data.order import order_seed
from odist.engine import checkpoint
from odist.engine.average import WeightAverage, decay_of
from odist.engine.trainer import CROSS_ENTROPIES, Cadence, Trainer
from odist.errors import UserError
from odist.exchange.base import Exchange, Snapshot, fingerprint
from odist.losses import check_range
from odist.mesh import Mesh
from odist.optim import Clock, Optimizer
from odist.rng import derive
from odist.run.folder import Run
from odist.run.log import MetricsLog
from odist.strategies.base import Strategy
from odist.tasks.base import Batch, Forward, Task
from odist.teachers.base import Teacher

Shelf = dict[int, dict[int, Snapshot]]
HEADER_BYTES = 4096  # more than safetensors spends on the name and shape of a tensor


def set_up_torch(config: Config) -> None:
    """Threads of this process, which are part of the bits, and one warning less (sparse gradients are trusted)."""
    torch.set_num_threads(config.launch.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()


def build_task(config: Config) -> Task:
    """Make the task of a configuration."""
    task: Task = registry.find("tasks", config.task.name)(config)
    return task


def make_clock(config: Config, task: Task) -> Clock:
    """The horizon: `train.passes` or `train.max_examples`, whichever comes first, in whole steps."""
    rows = task.num_rows("train")
    examples = int(config.train.passes * rows)
    if config.train.max_examples is not None:
        examples = min(examples, config.train.max_examples)
    per_step = config.train.batch * config.workers
    if rows == 0 and config.data.path is not None:
        raise UserError(f"data.path={config.data.path}: holds no training rows, for it was prepared to evaluate finished runs. "
                        f"Type odist eval RUN --data {config.data.path}")  # fmt: skip
    if config.data.path is not None and task.num_rows("validation") == 0:
        raise UserError(f"data.path={config.data.path}: holds no validation rows, by which every run is evaluated. Prepare it "
                        "again with a --validation-fraction above 0.")  # fmt: skip
    if examples < per_step:
        raise UserError(
            f"the horizon of {examples} examples (train.passes={config.train.passes} of {rows} training rows, "
            f"train.max_examples={config.train.max_examples}) is less than one step of {per_step} "
            "(train.batch x workers): lower train.batch or workers, or raise train.passes."
        )
    return Clock(per_step, examples // per_step)


def build_model(config: Config, task: Task, *, group: int) -> nn.Module:
    """The model of a group at step 0; group 0's is the same for every algorithm of one seed."""
    torch.manual_seed(derive(config.seed, "init", group=group))
    return task.build_model().to(config.launch.device)


@dataclass
class Parts:
    """What the groups of one process share.

    stop: asked by whoever waits; shelf: of the exchange in memory; exchanges: made so far, to be closed
    """

    config: Config
    run: Run
    task: Task
    clock: Clock
    log: MetricsLog
    stop: Callable[[], bool]
    shelf: Shelf
    exchanges: list[Exchange] = field(default_factory=list)


def build_trainer(parts: Parts, mesh: Mesh, *, stop: Callable[[int], bool], start: int = 0) -> Trainer:
    """Put one group together, or one process's share of it.

    start: completed steps of the checkpoint that the caller loads next; 0: of none
    """
    config, task, clock, group = parts.config, parts.task, parts.clock, mesh.group.index
    model = build_model(config, task, group=group)
    if start == 0 and config.train.init_from is not None:
        load_first_weights(config.train.init_from, config, model, group=group)
    optimizer = Optimizer(model, config.optim, clock=clock)
    strategy = build_strategy(config, mesh, clock=clock)
    strategy.prepare(model, optimizer)
    order = task.order(
        group=group,
        num_groups=config.num_groups,
        examples_per_step=clock.examples_per_step,
        seed=order_seed(config.seed, group=group, partition=config.data.partition),
    )

    def batches(step: int, workers: range = mesh.local_workers) -> list[Batch]:
        ids = np.split(order.ids(step), mesh.workers)
        seeds = [derive(config.seed, "augmentation", group=group, replica=w, step=step) for w in workers]
        made = [task.batch(ids[w], "train", seed) for w, seed in zip(workers, seeds, strict=True)]
        if task.main_metric in CROSS_ENTROPIES:
            for worker, batch in zip(workers, made, strict=True):
                _check_labels(config, batch, ids[worker])
        return made

    def first_batch(step: int) -> Batch:
        return batches(step, range(1))[0].to(config.launch.device)

    train = config.train
    loader = Loader(batches, num_steps=clock.num_steps, prefetch=train.prefetch, keep=config.exchange.lookahead)
    return Trainer(
        task=task,
        model=model,
        strategy=strategy,
        teacher=build_teacher(parts, mesh, model=model, loader=loader),
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
        log=parts.log,
        seed=config.seed,
        stop=stop,
        device=config.launch.device,
        average=build_average(config, model, clock=clock, forward=task.forward, batch_at=first_batch)
        if mesh.is_writer
        else None,
        publish_average=config.exchange.publish == "average",
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


def build_strategy(config: Config, mesh: Mesh, *, clock: Clock) -> Strategy:
    """Make the strategy by name, with the options that it takes."""
    name = config.algorithm.strategy
    options: dict[str, Any] = {}
    if name == "delayed":
        options = {"delay": config.algorithm.delay}
    elif name == "local_sgd":
        options = {"average_every": max(1, clock.steps(config.algorithm.average_every))}
    strategy: Strategy = registry.find("strategies", name)(mesh, **options)
    return strategy


def build_teacher(parts: Parts, mesh: Mesh, *, model: nn.Module, loader: Loader[list[Batch]]) -> Teacher:
    """Make the teacher by name; loads finished runs for two-phase distillation."""
    config, task, clock = parts.config, parts.task, parts.clock
    algorithm, exchange = config.algorithm, config.exchange
    make: Callable[..., Teacher] = registry.find("teachers", algorithm.teacher)
    if algorithm.teacher == "none":
        return make()
    if algorithm.teacher == "constant":
        prior = task.prior()
        classes = 2 if prior.ndim == 0 else len(prior)
        return make(prior if algorithm.distribution == "unigram" else torch.full_like(prior, 1 / classes))
    device = config.launch.device
    shared = {
        "burn_in": clock.steps(algorithm.burn_in),
        "batches": lambda step: [batch.to(device) for batch in loader[step]],
        "lookahead": exchange.lookahead,
        "num_steps": clock.num_steps,
        "mesh": mesh,
    }
    if algorithm.teacher == "fixed":
        return make(task.forward, models=load_teachers(algorithm.teachers, config, task), **shared)
    interval = max(1, clock.steps(exchange.interval))
    peers = [peer for peer in range(config.num_groups) if algorithm.include_self or peer != mesh.group.index]
    return make(
        task.forward,
        student=model,
        exchange=build_exchange(parts, mesh, model=model, peers=peers, interval=interval),
        group=mesh.group.index,
        peers=peers,
        interval=interval,
        lag=exchange.lag,
        timing=exchange.timing,
        timeout=exchange.timeout,
        stop=parts.stop,
        **shared,
    )


def build_exchange(parts: Parts, mesh: Mesh, *, model: nn.Module, peers: list[int], interval: int) -> Exchange:
    """One group's end of the exchange; only the writer of a group publishes and looks for fresh snapshots."""
    options, run, group = parts.config.exchange, parts.run, mesh.group.index
    make: Callable[..., Exchange] = registry.find("exchange", options.name)
    if options.name == "memory":
        # Of groups that take turns, the first publishes its next step before the last has heard the one before.
        end = make(group, shelf=parts.shelf, keep=options.lag + (2 if interval == 1 else 1))
    else:
        freshest = options.timing == "freshest"
        weights = model.state_dict()
        end = make(
            group,
            peers=peers,
            url=options.url or str(run.path / "exchange"),
            run=run.env.get("run_id") or run.name,
            model=fingerprint(weights),
            largest=sum(tensor.nbytes + HEADER_BYTES for tensor in weights.values()) + HEADER_BYTES,
            num_steps=parts.clock.num_steps,
            keep=options.keep,
            remember=0 if freshest else 2 * options.lag + 1,
            history=0 if freshest else (options.lag + 2) * interval,
            poll=options.poll if freshest and mesh.is_writer else None,
            # the oldest kept one: if newer ones are damaged, the group goes back to it
            last_checkpoint=lambda: min(run.checkpoint_steps(group), default=-1),
            read_only=not mesh.is_writer,
            patience=options.timeout,
        )
    parts.exchanges.append(end)
    return end


def on_device(config: Config, device: str) -> Config:
    """The configuration of a run whose models shall compute on `device`, wherever they were trained."""
    return replace(config, launch=replace(config.launch, device=device))


def fitted_fingerprint(run: Run, config: Config) -> str:
    """Names what gave ids, numbers and classes their meaning in a run; its data may be gone."""
    known: str | None = run.env.get("fitted_fingerprint")
    return known or build_task(config).fitted_fingerprint


def load_teachers(paths: Sequence[str], config: Config, task: Task) -> list[nn.Module]:
    """Models of finished runs: all groups of an ensemble, group 0 of a codistilled run.

    They may have learnt from other rows, of another day, if ids, numbers and classes meant the same there.
    """
    models = []
    for path in paths:
        run = Run.open(path)
        if not run.finished:
            raise UserError(f"{path}: a teacher must be a finished run; this one is {run.status.get('state')}.")
        other = on_device(load(run.path / "config.yaml"), config.launch.device)
        theirs = fitted_fingerprint(run, other)
        if theirs != task.fitted_fingerprint:
            cure = (
                f"Prepare this run's data with --like {other.data.path}"
                if other.data.path
                else "Train a teacher on the same data"
            )
            raise UserError(
                f"{path}: for this teacher, ids, numbers or classes mean something else than in this run's data (fitted parts "
                f"{theirs[:16]} there, {task.fitted_fingerprint[:16]} here). {cure}."
            )
        prepared = config.data.name == other.data.name == "prepared"  # its own store is not needed, and may be gone
        models += load_models(run, other, build_task(replace(other, data=config.data) if prepared else other))[0]
    return models


def load_first_weights(path: str, config: Config, model: nn.Module, *, group: int) -> None:
    """Start a group from the weights that predict for a finished run: from its group of the same number, or its group 0 if it has others.

    Raises UserError if the run is not finished or its model is another one.
    """
    run = Run.open(path)
    if not run.finished:
        raise UserError(f"train.init_from={path}: not finished (state {run.status.get('state')}).")
    theirs = load(run.path / "config.yaml")
    source = group if theirs.num_groups == config.num_groups else 0
    steps = run.checkpoint_steps(source)
    if not steps:
        raise UserError(f"train.init_from={path}: its group {source} has no checkpoint any more.")
    try:
        checkpoint.load_weights(run, source, step=steps[-1], model=model, averaged=theirs.train.average != "none")
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from error


def load_models(run: Run, config: Config, task: Task) -> tuple[list[nn.Module], int]:
    """The models that predict for a run (one, or all of an ensemble) and the step of their newest checkpoint."""
    missing = run.missing_groups
    sound = [group for group in range(config.num_groups) if group not in missing]
    groups = sound if predictor(config) == "mean" else sound[:1]
    step = checkpoint.common_step(run, groups)
    if step is None:
        raise UserError(f"{run.path}: no checkpoint yet (state {run.status.get('state')}). `odist train` makes one.")
    models = []
    for group in groups:
        model = build_model(config, task, group=group)
        checkpoint.load_weights(run, group, step=step, model=model, averaged=config.train.average != "none")
        models.append(model)
    return models, step


def predictor(config: Config, *, missing: Sequence[int] = ()) -> str:
    """Which of a run's groups predicts: group 0, fixed in advance, or the mean of an ensemble.

    missing: groups that the run has lost; then the first sound one predicts, or the mean of the sound ones
    Source: Anil et al. 2018, section 3.5 (one copy of a codistilled pair predicts).
    """
    if config.num_groups > 1 and config.algorithm.teacher != "peers":
        return "mean"
    return f"group-{min(group for group in range(config.num_groups) if group not in missing)}"
