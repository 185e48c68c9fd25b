"""What all suites time: the engine as a run puts it together, logging included, and a hand-written loop beside it."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odist.config.identity import to_dict
from odist.config.read import load
from odist.config.schema import Config
from odist.data.order import Order
from odist.engine import checkpoint
from odist.engine.problem import build_model, build_task, make_clock
from odist.exchange.base import Snapshot
from odist.launch.session import Session
from odist.mesh import Axis, Mesh
from odist.rng import derive
from odist.run.folder import Run
from odist.run.log import Silent
from odist.tasks.base import Batch, Task
from odist.teachers import peers_options

RUN_ID = "benchmark"  # of all engines: they may hand each other weights through one store


def make_config(
    store: Path,
    *,
    task: str,
    model: dict[str, Any],
    optim: dict[str, Any],
    batch: int,
    scale: str,
    interval: int,
    log: int,
    num_groups: int = 1,
    peers: bool = False,
    threads: int = 1,
    lookahead: int = 1,
) -> Config:
    """The configuration of one arm: prepared data, all groups in this process, exchange in memory, no end.

    batch: examples of a step; interval, log: steps between two reloads of the teacher, two rows of the log
    peers: whether the other groups teach, from the first reload on
    """
    content: dict[str, Any] = {
        "scale": scale,
        "num_groups": num_groups,
        "task": {"name": task},
        "data": {"name": "prepared", "path": str(store)},
        "model": model,
        "optim": optim,
        "algorithm": {"name": "bench", "teacher": "peers" if peers else "none", "average_every": batch},
        "exchange": {"name": "memory", "interval": interval * batch, "lookahead": lookahead},
        "launch": {"name": "inline", "threads": threads},
        "train": {"batch": batch, "passes": 1e6, "log_every": log * batch},
        "run": {"progress": False},
    }
    return load(content)


class HandLoop:
    """Training in ten lines, on batches that are ready: nothing is logged, nothing can be continued.

    batches: used again from the first after the last; loss: mean over a batch, from logits and targets
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.model = model
        self._batches = itertools.cycle(batches)
        self._loss = loss
        self._optimizers = optimizers

    def train(self, steps: int) -> None:
        """Make `steps` steps."""
        torch.set_num_threads(1)
        for batch in itertools.islice(self._batches, steps):
            loss = self._loss(self.model(*batch.inputs), batch.targets)
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self._optimizers:
                optimizer.step()


class Engine:
    """Training as a run does it: log rows, status and pruning of checkpoints with them; never at its end.

    groups: which of the configuration's groups train here, in turns
    start: completed steps that are taken for granted
    replica: this process among those of the group, where torch.distributed knows them all
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        groups: Sequence[int] = (0,),
        start: int = 0,
        replica: Axis | None = None,
    ) -> None:
        self.config = config
        self.run = Run.create(folder, to_dict(config), overrides=[], env={"run_id": RUN_ID})
        self.task = build_task(config)
        meshes = [Mesh(Axis(group, config.num_groups), replica or Axis(), config.workers) for group in groups]
        clock = make_clock(config, self.task)
        self._session = Session(
            self.run, config, self.task, clock=clock, meshes=meshes, progress=Silent(), stop=lambda: False
        )
        self.trainers, self.parts = self._session.trainers, self._session.parts
        self._fits = [trainer.fit(start) for trainer in self.trainers]

    def offer(self, *, steps: int) -> None:
        """Put one and the same snapshot of group 1 in memory for every reload of the next `steps` steps."""
        model = build_model(self.config, self.task, group=1)
        weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        peers = peers_options(self.config)
        assert peers is not None, "only a group that has a peer can be offered its weights"
        interval = self.parts.clock.steps(peers.interval)
        wanted = range(interval, steps + 1, interval)
        self.parts.published[1] = {step: Snapshot(1, step, weights, time.time()) for step in wanted}

    def train(self, steps: int) -> None:
        """Make `steps` steps of every group."""
        torch.set_num_threads(self.config.launch.threads)
        for _ in range(steps):
            done, *_ = [next(fit) for fit in self._fits]
            if done % self.trainers[0].cadence.log == 0:
                checkpoint.prune(self.run, self.config.trained_groups, keep=self.config.train.keep_checkpoints)
                self.run.set_status(step=done)

    def median_step(self, steps: int) -> float:
        """Make `steps` steps of every group; returns the median seconds of one."""
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            self.train(1)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def close(self) -> None:
        """End its threads and close its log."""
        self._session.close()


@contextlib.contextmanager
def engines(folder: Path, configs: Mapping[str, Config], *, start: int, offered: int) -> Iterator[list[Engine]]:
    """Engines of some configurations, closed at the end; those of two groups are offered a teacher.

    configs: by the name of the folder that each gets below `folder`; start: as of Engine; offered: steps as of `offer`
    """
    with contextlib.ExitStack() as stack:
        made = []
        for name, config in configs.items():
            engine = Engine(folder / name, config, start=start)
            stack.callback(engine.close)
            if config.num_groups == 2:
                engine.offer(steps=offered)
            made.append(engine)
        yield made


def batches_of(config: Config, task: Task, *, start: int, steps: int) -> tuple[Order, list[Batch]]:
    """The order and the batches that the engine reads from step `start` on."""
    order = task.order(
        group=0,
        num_groups=config.num_groups,
        examples_per_step=config.train.batch,
        seed=derive(config.seed, "order", group=0),
    )
    return order, [task.batch(order.ids(step), "train").to("cpu") for step in range(start, start + steps)]
