"""A process's entry: a run folder in, training of all its groups or of one, results out.

Putting the objects together is wiring.py's business; making run folders, starting processes and
handling signals is launch.py's.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from odist import checkpoint
from odist.config import Config
from odist.config_read import load
from odist.errors import Interrupted, OdistError, UserError
from odist.evaluation import log_mean_evaluations
from odist.log import NOTE, MetricsLog, make_progress
from odist.mesh import Axis, Mesh
from odist.metrics import constant_loss
from odist.optim import Clock
from odist.prediction import predict_split
from odist.run import Run, write_atomically
from odist.tasks.base import Task
from odist.trainer import CROSS_ENTROPIES, Trainer
from odist.wiring import Parts, Shelf, build_task, build_trainer, make_clock, predictor, set_up_torch

SECONDS_TO_LEAVE = 120.0  # for the workers of a killed command to save and end


def main(run: Run, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Train or continue a run to its end, all groups taking turns in this process.

    stop: becomes true when the run should save and end (a signal)
    Raises Interrupted (state saved), Diverged, LostWorkers (state saved), UserError.
    """
    config = load(run.path / "config.yaml")
    set_up_torch(config)
    task = build_task(config)
    clock = make_clock(config, task)
    with held(run, range(config.num_groups), stop=stop):
        _train_in_turns(run, config, task, clock=clock, stop=stop)


def _train_in_turns(run: Run, config: Config, task: Task, *, clock: Clock, stop: Callable[[], bool]) -> None:
    start = _common_start(run, config)
    progress = make_progress(show=config.run.progress, num_groups=config.num_groups, num_steps=clock.num_steps)
    log = MetricsLog(run, progress=progress)
    shelf: Shelf = {}
    parts = Parts(config, run, task, clock=clock, log=log, stop=stop, shelf=shelf)
    trainers: list[Trainer] = []
    agreed = AgreedStop(stop, Mesh())
    try:
        for group in range(config.num_groups):
            mesh = Mesh(group=Axis(group, config.num_groups), workers=config.workers)
            trainers.append(build_trainer(parts, mesh, stop=agreed, start=start))
            if start:
                trainers[-1].load(start)
        open_run(run, task, clock)
        run.set_status(state="running", step=start, num_steps=clock.num_steps, started=time.time())
        _take_turns(run, config, trainers, start=start)
        progress.say(f"trained {clock.num_steps} steps; predicting the validation part")
        for trainer in trainers:
            finish_group(trainer, config)
        combine(run)
    finally:
        for trainer in trainers:
            trainer.loader.close()
        for end in parts.exchanges:
            end.close()
        log.close()


@contextlib.contextmanager
def held(run: Run, groups: Iterable[int], *, stop: Callable[[], bool]) -> Iterator[None]:
    """Be the only process that writes these groups' files, and repair what a killed one left.

    When the process that started them dies, workers save and leave by themselves; whoever continues the run
    at once waits for that, up to SECONDS_TO_LEAVE. Raises UserError if they stay, Interrupted if `stop` says so.
    """
    (run.path / "logs").mkdir(exist_ok=True)
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    with contextlib.ExitStack() as locks:
        for group in groups:
            lock = os.open(run.path / "logs" / f".group-{group}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            locks.callback(os.close, lock)
            while not _locked(lock):
                if time.monotonic() > deadline:
                    raise UserError(f"{run.path}: another process still trains group {group}. Stop it first.")
                if stop():
                    raise Interrupted("stopped before it began; the same command continues it.")
                time.sleep(0.05)
            checkpoint.recover(run, group)
        yield


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks on this file system
    return True


def note(text: str) -> None:
    """Tell the user something; of a process of a group, the command that started it passes it on."""
    print(f"{NOTE}{text}", file=sys.stderr, flush=True)


def _common_start(run: Run, config: Config) -> int:
    """The step from which groups that take turns go on; UserError if each was saved at a step of its own."""
    steps = [run.checkpoint_steps(group) for group in range(config.num_groups)]
    common = checkpoint.newest_sound(run, range(config.num_groups), say=note)
    if common is None and all(steps):
        newest = ", ".join(str(group[-1]) for group in steps)
        raise UserError(
            f"{run.path}: its groups were saved after steps {newest}, as processes of their own, and cannot take turns "
            "from there: continue with launch=local."
        )
    for group in range(config.num_groups):
        checkpoint.drop_newer(run, group, than=common or 0)
    return common or 0


class AgreedStop:
    """One answer per step for all groups of a process and all processes of a group, whenever the signal comes."""

    def __init__(self, stop: Callable[[], bool], mesh: Mesh) -> None:
        self._stop = stop
        self._mesh = mesh
        self._step = -1
        self._answer = False

    def __call__(self, step: int) -> bool:
        if step != self._step:
            self._step, self._answer = step, self._mesh.any(self._stop())
        return self._answer


def _take_turns(run: Run, config: Config, trainers: Sequence[Trainer], *, start: int) -> None:
    clock = trainers[0].clock
    for steps in itertools.zip_longest(*(trainer.fit(start) for trainer in trainers)):
        done = steps[0]
        if done is not None and done % trainers[0].cadence.log == 0:
            checkpoint.prune(run, config.num_groups, keep=config.train.keep_checkpoints)
            run.set_status(step=done)
    if any(trainer.stopped for trainer in trainers):
        step = checkpoint.common_step(run, config.num_groups) or 0
        run.set_status(state="interrupted", step=step)
        raise Interrupted(f"saved after step {step} of {clock.num_steps}; the same command continues it.")
    run.set_status(step=clock.num_steps)
    checkpoint.prune(run, config.num_groups, keep=config.train.keep_checkpoints)


def work(run: Run, *, group: int, replica: int, rendezvous: Path, stop: Callable[[], bool]) -> None:
    """Train or continue one group as process `replica` of `launch.processes`; see launch.py for who starts it.

    rendezvous: file through which the processes of this group find each other
    Raises as `main`; a finished group returns at once.
    """
    config = load(run.path / "config.yaml")
    set_up_torch(config)
    if (run.prediction_root("validation") / f"group-{group}.json").is_file():
        return
    mesh = Mesh(Axis(group, config.num_groups), Axis(replica, config.launch.processes), config.workers)
    with held(run, [group] if mesh.is_writer else [], stop=stop):
        if mesh.replica.size > 1:
            store = dist.FileStore(str(rendezvous), mesh.replica.size)  # type: ignore[attr-defined]
            patience = timedelta(seconds=config.exchange.timeout + 600)
            dist.init_process_group("gloo", store=store, rank=replica, world_size=mesh.replica.size, timeout=patience)
        _train_group(run, config, mesh, stop=stop)


def _train_group(run: Run, config: Config, mesh: Mesh, *, stop: Callable[[], bool]) -> None:
    group = mesh.group.index
    task = build_task(config)
    clock = make_clock(config, task)
    if mesh.is_writer and group == 0:
        open_run(run, task, clock)
    sound = checkpoint.newest_sound(run, [group], say=note) if mesh.is_writer else None
    start = mesh.from_writer([sound or 0])[0]
    log = MetricsLog(run, progress=make_progress(show=False, num_groups=config.num_groups, num_steps=0))
    parts = Parts(config, run, task, clock=clock, log=log, stop=stop, shelf={})
    trainer = build_trainer(parts, mesh, stop=AgreedStop(stop, mesh), start=start)
    try:
        if start:
            trainer.load(start)
        for done in trainer.fit(start):
            if mesh.is_writer and done % trainer.cadence.log == 0:
                checkpoint.prune_group(run, group, keep=config.train.keep_checkpoints)
        if trainer.stopped:
            raise Interrupted(f"group {group} stopped and saved.")
        if mesh.is_writer:
            checkpoint.prune_group(run, group, keep=config.train.keep_checkpoints)
            finish_group(trainer, config)
    finally:
        trainer.loader.close()
        for end in parts.exchanges:
            end.close()
        log.close()


def open_run(run: Run, task: Task, clock: Clock) -> None:
    """Tell readers of the run folder which data the run reads and how long it is."""
    env = run.env
    known = {"data_fingerprint": env.get("data_fingerprint") or task.fingerprint}  # of prepared data known before
    known["fitted_fingerprint"] = task.fitted_fingerprint  # for who uses the run when its data are gone
    if not known.items() <= env.items():
        run.write_json("env.json", {**env, **known})
    run.write_json("horizon.json", {"num_steps": clock.num_steps, "examples_per_step": clock.examples_per_step})


def finish_group(trainer: Trainer, config: Config) -> None:
    """Write a trained group's predictions, and its results beside them as the mark that it is done."""
    task, clock, group = trainer.task, trainer.clock, trainer.mesh.group.index
    root = trainer.run.prediction_root("validation")
    root.mkdir(parents=True, exist_ok=True)
    prediction = predict_split(task, [trainer.model], batch_size=config.train.evaluate_batch, device=trainer.device)
    results = task.results(prediction.probabilities, prediction.targets, bayes=prediction.bayes, split="validation")
    np.save(root / f"group-{group}.npy", prediction.probabilities.astype(np.float32))
    if group == 0:
        np.save(root / "targets.npy", prediction.targets)
        if prediction.bayes is not None:
            np.save(root / "bayes.npy", prediction.bayes)
        content = {
            "split": "validation",
            "rows": len(prediction.targets),
            "predictor": predictor(config),
            "steps": clock.num_steps,
            "examples_per_model": clock.horizon,
            "total_examples": clock.horizon * config.num_groups,
            "distinct_examples": task.distinct_rows(num_groups=config.num_groups, examples=clock.horizon),
            "flops": training_flops(config, task, trainer.model, clock=clock),
        }
        meta = {"predictor": predictor(config), "num_groups": config.num_groups, "fingerprint": task.fingerprint}
        write_atomically(root / "meta.json", json.dumps({**meta, "results": content}) + "\n")
    training = {"seconds": round(trainer.seconds, 3), "weight_hash": checkpoint.weight_hash(trainer.model)}
    own = {**results, **training, **trainer.teacher.summary()}
    write_atomically(root / f"group-{group}.json", json.dumps(own) + "\n")


def combine(run: Run) -> None:
    """Write results.json from what the groups left; the last thing is the state `finished`."""
    config = load(run.path / "config.yaml")
    root = run.prediction_root("validation")
    content = json.loads((root / "meta.json").read_text())["results"]
    groups = [json.loads((root / f"group-{group}.json").read_text()) for group in range(config.num_groups)]
    whole = run.predictions("validation")
    task = build_task(config)
    results = task.results(whole.probabilities, whole.targets, bayes=whole.bayes, split="validation")
    if content["predictor"] == "mean":
        log_mean_evaluations(run, config)
    seconds = round(sum(group["seconds"] for group in groups), 3)
    content |= {
        "metrics": results,
        "groups": groups,
        "seconds": seconds,
        **beside_a_constant(task, results, whole.targets),
    }
    run.write_json("results.json", content)
    run.set_status(state="finished", step=content["steps"], num_steps=content["steps"], finished=time.time())


def beside_a_constant(task: Task, results: dict[str, Any], targets: np.ndarray) -> dict[str, Any]:
    """How good it were to predict the training labels' frequencies for every row, and a remark if the run is no better."""
    name = task.main_metric
    if name not in CROSS_ENTROPIES:
        return {}
    constant = constant_loss(task.prior().numpy(), targets)
    remarks = []
    if results.get(name) is not None and not results[name] < constant:
        remarks.append(
            f"{name} {results[name]:.5f} is no better than a constant prediction: the frequencies of the training labels, for "
            f"every row, have {constant:.5f}. The run has learnt nothing; try another optim.lr, or train longer."
        )
    return {"constant_prediction": {name: constant}, "remarks": remarks}


def training_flops(config: Config, task: Task, model: torch.nn.Module, *, clock: Clock) -> int:
    """Floating-point operations of the whole run: three forwards a training example, one a teacher's prediction."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = task.evaluation_order("validation", rows=None, batch_size=config.train.batch).ids(0)
    batch = task.batch(ids, "validation", 0).to(config.launch.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.forward(model, batch, None)
    forward = counter.get_total_flops() / len(ids)
    algorithm = config.algorithm
    num_teachers = {"peers": config.num_groups - 1, "fixed": len(algorithm.teachers)}.get(algorithm.teacher, 0)
    taught = max(0, clock.horizon - algorithm.burn_in)
    return round(config.num_groups * forward * (3 * clock.horizon + num_teachers * taught))


def entry(arguments: list[str]) -> int:
    """Run one process of one group (`python -m odist.worker RUN GROUP REPLICA RENDEZVOUS PARENT`); its exit code.

    SIGTERM and SIGINT save and end; so does the death of PARENT, the id of the process that started this one.
    """
    path, group, replica, rendezvous, parent = arguments
    signalled = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signalled.append(True))
    try:
        work(
            Run.open(path),
            group=int(group),
            replica=int(replica),
            rendezvous=Path(rendezvous),
            stop=lambda: bool(signalled) or os.getppid() != int(parent),
        )
    except OdistError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
