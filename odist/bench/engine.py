"""The engine as a run puts it together, to be timed against loops written by hand, and the batches that it reads.

It is made by wiring.py as for any run and does what it does in one, logging included. Data, configurations and loops
by hand are left to the suites.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from odist.config.schema import Config, to_dict
from odist.data.order import Order
from odist.engine import checkpoint
from odist.engine.wiring import Parts, build_model, build_task, build_trainer, make_clock
from odist.exchange.base import Snapshot
from odist.launch.stop import AgreedStop
from odist.mesh import Axis, Mesh
from odist.rng import derive
from odist.run.folder import Run
from odist.run.log import MetricsLog, make_progress
from odist.tasks.base import Batch, Task


class Engine:
    """Training as a run does it: log rows, status and pruning of checkpoints with them; never at its end.

    groups: which of the configuration's groups train here, in turns
    start: completed steps that are taken for granted
    """

    def __init__(self, folder: Path, config: Config, *, groups: Sequence[int] = (0,), start: int = 0) -> None:
        self.config = config
        self.run = Run.create(folder, to_dict(config), overrides=[], env={})
        self.task = build_task(config)
        progress = make_progress(show=False, num_groups=config.num_groups, num_steps=0)
        self.log = MetricsLog(self.run, progress=progress)
        clock = make_clock(config, self.task)
        self.parts = Parts(config, self.run, self.task, clock=clock, log=self.log, stop=lambda: False, shelf={})
        agreed = AgreedStop(lambda: False, Mesh())
        meshes = [Mesh(group=Axis(group, config.num_groups)) for group in groups]
        self.trainers = [build_trainer(self.parts, mesh, stop=agreed) for mesh in meshes]
        self._fits = [trainer.fit(start) for trainer in self.trainers]

    def offer(self, *, steps: int) -> None:
        """Put one and the same snapshot of group 1 on the shelf for every reload of the next `steps` steps."""
        model = build_model(self.config, self.task, group=1)
        weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        interval = self.parts.clock.steps(self.config.exchange.interval)
        wanted = range(interval, steps + 1, interval)
        self.parts.shelf[1] = {step: Snapshot(1, step, weights, time.time()) for step in wanted}

    def train(self, steps: int) -> None:
        """Make `steps` steps of every group."""
        torch.set_num_threads(self.config.launch.threads)
        for _ in range(steps):
            done, *_ = [next(fit) for fit in self._fits]
            if done % self.trainers[0].cadence.log == 0:
                checkpoint.prune(self.run, self.config.num_groups, keep=self.config.train.keep_checkpoints)
                self.run.set_status(step=done)

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.loader.close()
        self.log.close()


def batches_of(config: Config, task: Task, *, start: int, steps: int) -> tuple[Order, list[Batch]]:
    """The order and the batches that the engine reads from step `start` on."""
    order = task.order(
        group=0,
        num_groups=config.num_groups,
        examples_per_step=config.train.batch,
        seed=derive(config.seed, "order", group=0),
    )
    return order, [task.batch(order.ids(step), "train", 0) for step in range(start, start + steps)]
