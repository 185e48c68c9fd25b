"""A process's entry: config.yaml -> objects -> training or evaluation of a run.

The only place that wires tasks, strategies, teachers and exchanges together. Reads the finished
configuration without Hydra; making run folders and handling signals is left to launch.py.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from odist import checkpoint, registry
from odist.config import Config, load
from odist.data.loader import Loader
from odist.errors import Interrupted, UserError
from odist.exchange.base import Snapshot
from odist.log import MetricsLog, make_progress, truncate
from odist.mesh import Axis, Mesh
from odist.optim import Clock, Optimizer
from odist.rng import derive
from odist.run import Run, write_atomically
from odist.strategies.base import Strategy
from odist.tasks.base import Batch, Task
from odist.teachers.base import Teacher
from odist.trainer import Cadence, Trainer, evaluate_split

Shelf = dict[int, dict[int, Snapshot]]


def main(run: Run, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Train or continue a run to its end, all groups taking turns in this process.

    stop: becomes true when the run should save and end (a signal)
    Raises Interrupted (state saved), Diverged, UserError.
    """
    config = load(run.config)
    set_up_torch(config)
    task = build_task(config)
    clock = make_clock(config, task)
    start = checkpoint.common_step(run, config.num_groups) or 0
    truncate(run.path / "metrics.jsonl", step=start)
    progress = make_progress(show=config.run.progress, num_groups=config.num_groups, num_steps=clock.num_steps)
    log = MetricsLog(run, progress=progress)
    trainers: list[Trainer] = []
    decided = AgreedStop(stop)
    try:
        shelf: Shelf = {}
        for group in range(config.num_groups):
            trainers.append(
                build_trainer(config, run, task, group=group, clock=clock, shelf=shelf, log=log, stop=decided)
            )
        _train(run, config, trainers, start=start)
        progress.say(f"trained {clock.num_steps} steps; predicting the validation part")
        finish(run, config, task, trainers)
    finally:
        for trainer in trainers:
            trainer.loader.close()
        log.close()


def set_up_torch(config: Config) -> None:
    """Threads of this process, which are part of the bits, and one warning less (sparse gradients are trusted)."""
    torch.set_num_threads(config.launch.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()


class AgreedStop:
    """One answer per step for all groups, though the signal may come between two of them."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._step = -1
        self._answer = False

    def __call__(self, step: int) -> bool:
        if step != self._step:
            self._step, self._answer = step, self._stop()
        return self._answer


def _train(run: Run, config: Config, trainers: Sequence[Trainer], *, start: int) -> None:
    for trainer in trainers:
        if start:
            trainer.load(start)
    clock = trainers[0].clock
    run.set_status(state="running", step=start, num_steps=clock.num_steps, started=time.time())
    every = max(1, trainers[0].cadence.log)
    for steps in itertools.zip_longest(*(trainer.fit(start) for trainer in trainers)):
        done = steps[0]
        if done is not None and done % every == 0:
            checkpoint.prune(run, config.num_groups, keep=config.train.keep_checkpoints)
            run.set_status(step=done)
    if any(trainer.stopped for trainer in trainers):
        step = checkpoint.common_step(run, config.num_groups) or 0
        run.set_status(state="interrupted", step=step)
        raise Interrupted(f"stopped and saved after step {step} of {clock.num_steps}; the same command continues it.")
    run.set_status(step=clock.num_steps)
    checkpoint.prune(run, config.num_groups, keep=config.train.keep_checkpoints)


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


def build_trainer(
    config: Config,
    run: Run,
    task: Task,
    *,
    group: int,
    clock: Clock,
    shelf: Shelf,
    log: MetricsLog,
    stop: Callable[[int], bool],
) -> Trainer:
    """Put one group together."""
    mesh = Mesh(group=Axis(group, config.num_groups), workers=config.workers)
    model = build_model(config, task, group=group)
    optimizer = Optimizer(model, config.optim, clock=clock)
    strategy = build_strategy(config, mesh, clock=clock)
    strategy.prepare(model, optimizer)
    order = task.order(
        group=group,
        num_groups=config.num_groups,
        examples_per_step=clock.examples_per_step,
        seed=derive(config.seed, "order", group=group),
    )

    def batches(step: int) -> list[Batch]:
        ids = order.ids(step).reshape(mesh.workers, -1)
        seeds = [derive(config.seed, "augmentation", group=group, replica=w, step=step) for w in mesh.local_workers]
        return [task.batch(ids[w], "train", seed) for w, seed in zip(mesh.local_workers, seeds, strict=True)]

    lookahead = config.exchange.lookahead
    loader = Loader(batches, num_steps=clock.num_steps, prefetch=config.train.prefetch, keep=lookahead)
    teacher = build_teacher(config, task, model=model, group=group, clock=clock, loader=loader, shelf=shelf)
    train = config.train
    cadence = Cadence(
        evaluate=clock.steps(train.evaluate_every),
        checkpoint=clock.steps(train.checkpoint_every),
        log=clock.steps(train.log_every) or max(1, clock.num_steps // 100),
        evaluate_rows=train.evaluate_rows,
        evaluate_batch=train.evaluate_batch,
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
        cadence=cadence,
        run=run,
        log=log,
        seed=config.seed,
        stop=stop,
        device=config.launch.device,
    )


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


def build_teacher(
    config: Config,
    task: Task,
    *,
    model: nn.Module,
    group: int,
    clock: Clock,
    loader: Loader[list[Batch]],
    shelf: Shelf,
) -> Teacher:
    """Make the teacher by name; loads finished runs for two-phase distillation."""
    algorithm, exchange = config.algorithm, config.exchange
    make = registry.find("teachers", algorithm.teacher)
    teacher: Teacher
    if algorithm.teacher == "none":
        teacher = make()
        return teacher
    if algorithm.teacher == "constant":
        prior = task.prior()
        classes = 2 if prior.ndim == 0 else len(prior)
        teacher = make(prior if algorithm.distribution == "unigram" else torch.full_like(prior, 1 / classes))
        return teacher
    device = config.launch.device
    shared = {
        "burn_in": clock.steps(algorithm.burn_in),
        "batches": lambda step: [batch.to(device) for batch in loader[step]],
        "lookahead": exchange.lookahead,
        "num_steps": clock.num_steps,
    }
    if algorithm.teacher == "fixed":
        teacher = make(task.forward, models=load_teachers(algorithm.teachers, config, task), **shared)
        return teacher
    end = registry.find("exchange", exchange.name)(group, shelf=shelf, keep=exchange.lag + 1)
    teacher = make(
        task.forward,
        student=model,
        exchange=end,
        group=group,
        peers=[peer for peer in range(config.num_groups) if peer != group],
        interval=max(1, clock.steps(exchange.interval)),
        lag=exchange.lag,
        **shared,
    )
    return teacher


def load_teachers(paths: Sequence[str], config: Config, task: Task) -> list[nn.Module]:
    """Models of finished runs: all groups of an ensemble, group 0 of a codistilled run."""
    models = []
    for path in paths:
        run = Run.open(path)
        if not run.finished:
            raise UserError(f"{path}: a teacher must be a finished run; this one is {run.status.get('state')}.")
        other = load(run.config)
        other_task = build_task(other)
        if other_task.fingerprint != task.fingerprint:
            raise UserError(f"{path}: this teacher was trained on other data than this run is (other fingerprint).")
        models += [model.to(config.launch.device) for model in load_models(run, other, other_task)]
    return models


def load_models(run: Run, config: Config, task: Task) -> list[nn.Module]:
    """The models that predict for a run, from its newest checkpoint: one, or all of an ensemble."""
    step = checkpoint.common_step(run, config.num_groups)
    if step is None:
        raise UserError(f"{run.path}: no checkpoint yet (state {run.status.get('state')}). `odist train` makes one.")
    models = []
    for group in range(config.num_groups if predictor(config) == "mean" else 1):
        model = build_model(config, task, group=group)
        checkpoint.load_weights(run, group, step=step, model=model)
        models.append(model)
    return models


def predictor(config: Config) -> str:
    """Which of a run's groups predicts: group 0, fixed in advance, or the mean of an ensemble.

    Source: Anil et al. 2018, section 3.5 (one copy of a codistilled pair predicts).
    """
    return "mean" if config.num_groups > 1 and config.algorithm.teacher != "peers" else "group-0"


def finish(run: Run, config: Config, task: Task, trainers: Sequence[Trainer]) -> None:
    """Write predictions and results of a trained run; the last thing is the state `finished`."""
    root = run.prediction_root("validation")
    root.mkdir(parents=True, exist_ok=True)
    groups = []
    for trainer in trainers:
        group = trainer.mesh.group.index
        prediction = evaluate_split(
            task, [trainer.model], batch_size=config.train.evaluate_batch, device=trainer.device
        )
        np.save(root / f"group-{group}.npy", prediction.probabilities.astype(np.float32))
        np.save(root / "targets.npy", prediction.targets)
        if prediction.bayes is not None:
            np.save(root / "bayes.npy", prediction.bayes)
        results = task.results(prediction.probabilities, prediction.targets, bayes=prediction.bayes)
        groups.append({**results, "weight_hash": checkpoint.weight_hash(trainer.model)})
    meta = {"predictor": predictor(config), "num_groups": config.num_groups, "fingerprint": task.fingerprint}
    write_atomically(root / "meta.json", json.dumps(meta) + "\n")
    whole = run.predictions("validation")
    clock = trainers[0].clock
    run.write_json(
        "results.json",
        {
            "split": "validation",
            "rows": len(whole.targets),
            "predictor": predictor(config),
            "metrics": task.results(whole.probabilities, whole.targets, bayes=whole.bayes),
            "groups": groups,
            "steps": clock.num_steps,
            "examples_per_model": clock.horizon,
            "total_examples": clock.horizon * config.num_groups,
            "distinct_examples": task.distinct_rows(num_groups=config.num_groups, examples=clock.horizon),
            "flops": training_flops(config, task, trainers[0].model, clock=clock),
            "seconds": round(sum(trainer.seconds for trainer in trainers), 3),
        },
    )
    run.set_status(state="finished", step=clock.num_steps, finished=time.time())


def training_flops(config: Config, task: Task, model: nn.Module, *, clock: Clock) -> int:
    """Floating-point operations of the whole run: three forwards a training example, one a teacher's prediction."""
    from torch.utils.flop_counter import FlopCounterMode

    size = min(config.train.batch, task.num_rows("validation"))
    batch = task.batch(np.arange(size), "validation", 0).to(config.launch.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.forward(model, batch, None)
    forward = counter.get_total_flops() / size
    teachers = {"peers": config.num_groups - 1, "fixed": len(config.algorithm.teachers)}.get(
        config.algorithm.teacher, 0
    )
    taught = max(0, clock.horizon - config.algorithm.burn_in)
    return round(config.num_groups * forward * (3 * clock.horizon + teachers * taught))


def evaluate(run: Run, *, split: str, data: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint.

    split: "validation" or "train"; data: another store, made with the same fitted parts (`--like`)
    output: write the predictions there (.csv or .parquet)
    Returns the results with intervals. Raises UserError if the store is made otherwise.
    """
    config = load(run.config)
    set_up_torch(config)
    task = build_task(config)
    models = load_models(run, config, task)
    if data is not None:
        from dataclasses import replace

        there = build_task(replace(config, data=replace(config.data, name="prepared", path=str(data), max_rows=None)))
        if there.fitted_fingerprint != task.fitted_fingerprint:
            raise UserError(
                f"--data {data}: made with other fitted parts than the run's data, so its ids and numbers mean "
                f"something else. Prepare it with --like {config.data.path or 'STORE'}."
            )
        task = there
    if task.num_rows(split) == 0:
        raise UserError(f"--split {split}: this part of the data is empty; choose the other of train, validation.")
    prediction = evaluate_split(
        task, models, split=split, batch_size=config.train.evaluate_batch, device=config.launch.device
    )
    results = task.results(prediction.probabilities, prediction.targets, bayes=prediction.bayes)
    if output is not None:
        write_predictions(output, prediction.probabilities, prediction.targets)
    step = checkpoint.common_step(run, config.num_groups)
    return {"run": str(run.path), "split": split, "step": step, "predictor": predictor(config), **results}


def write_predictions(path: Path, probabilities: np.ndarray, targets: np.ndarray) -> None:
    """Write predictions as a table that `odist churn` reads: columns row, label, prediction (or one per class)."""
    import pandas as pd

    columns: dict[str, Any] = {"row": np.arange(len(targets)), "label": targets}
    if probabilities.ndim == 1:
        columns["prediction"] = probabilities
    else:
        columns.update({f"prediction_{c}": probabilities[:, c] for c in range(probabilities.shape[1])})
    frame = pd.DataFrame(columns)
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--output {path}: expected a name that ends in .csv or .parquet.")
    try:
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror or error}.") from error
