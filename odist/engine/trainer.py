"""THE training loop: one for every algorithm, and the only place that calls `backward`.

Algorithms differ in the strategy (how a group's workers agree), the teacher (where soft targets come
from) and the number of groups; none of them is known here: odist.engine.wiring puts them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from odist.data.loader import Loader
from odist.engine import checkpoint
from odist.engine.average import WeightAverage
from odist.engine.prediction import measure_spread
from odist.engine.saving import Saver
from odist.errors import Diverged, Interrupted, LostWorkers
from odist.mesh import Mesh
from odist.optim import Clock, Optimizer
from odist.rng import derive
from odist.run.folder import Run, step_name
from odist.run.log import MetricsLog
from odist.run.predictions import LAST_WEIGHTS, LAST_WEIGHTS_FILE
from odist.strategies.base import Losses, Scheduled, Serving, Strategy, label_weights, units_of
from odist.tasks.base import Batch, Carry, Task
from odist.teachers.base import HeardElsewhere, Shows, Teacher

CROSS_ENTROPIES = ("log_loss", "cross_entropy")  # main metrics of tasks whose label loss cannot be negative
ROUNDING = 1e-6  # nats by which the mean of many losses may miss 0


@dataclass(frozen=True)
class Cadence:
    """When something besides training happens, in steps; 0: only at the end.

    evaluate_rows: rows of evaluations on the way, None for all; the last one always reads all
    keep_evaluations: each leaves its predictions in the run's `evaluation_root`
    """

    evaluate: int = 0
    checkpoint: int = 0
    log: int = 1
    evaluate_rows: int | None = None
    evaluate_batch: int = 4096
    keep_evaluations: bool = False


@dataclass
class Window(Losses):
    """Loss sums since the last row of the log."""

    seconds: float = 0.0


@dataclass
class Trainer:
    """Trains one group: everything it needs is handed in, see odist.engine.wiring.

    loader: step -> one batch per virtual worker; seed: the run's; stop: asked once per step with the
    number of completed steps, the same answer for every group
    average: predicts in place of the weights, and is what peers see with publish_average; every process of the group keeps it
    """

    task: Task
    model: nn.Module
    strategy: Strategy
    teacher: Teacher
    optimizer: Optimizer
    loader: Loader[list[Batch]]
    mesh: Mesh
    clock: Clock
    cadence: Cadence
    run: Run
    saver: Saver
    log: MetricsLog
    seed: int
    stop: Callable[[int], bool] = field(default=lambda step: False)
    device: str = "cpu"
    average: WeightAverage | None = None
    publish_average: bool = False
    carry: dict[int, Carry] = field(default_factory=dict)
    seconds: float = 0.0  # of training: neither evaluation nor saving is counted
    stopped: bool = False
    unfinished: bool = False  # the last step's refresh, log and evaluation are still to come
    window: Window = field(default_factory=Window)

    def fit(self, start: int = 0) -> Iterator[int]:
        """Train from `start` completed steps to the end; yield the completed steps after each step.

        Groups in one process take turns at the yield, where every group has published and none has
        yet refreshed its teacher; those that show each other predictions also within a step. Raises Diverged when the loss is no finite number, or a negative
        cross-entropy; LostWorkers when a peer's weights do not come, with the state saved.
        """
        self.model.train()
        if self.unfinished and not self._finish_step(start):
            return
        for step in range(start, self.clock.num_steps):
            began = time.perf_counter()
            for _ in self.train_step(step):
                self._count_time(began)
                yield step
                began = time.perf_counter()
            done = step + 1
            if self.average is not None:
                self.strategy.settle()
                self.average.update(done)
            self.teacher.publish(done, partial(self._offered, done))
            self._count_time(began)
            yield done
            if not self._finish_step(done):
                return

    def _finish_step(self, done: int) -> bool:
        """Refresh the teacher, then log, evaluate and save where due; whether to go on."""
        last = done == self.clock.num_steps
        log_due = last or done % self.cadence.log == 0
        heard = self.teacher.log() if log_due else {}  # of the teacher that this step listened to
        began = time.perf_counter()
        self.unfinished = True
        try:
            self.teacher.refresh(done)
        except (Interrupted, LostWorkers) as error:
            self.save(done)  # with the refresh still to come
            self.saver.wait()
            self.stopped = isinstance(error, Interrupted)
            if not self.stopped:
                raise
            return False
        self.unfinished = False
        self._count_time(began)
        if log_due:
            self._log_training(done, heard)
        if last or _due(done, self.cadence.evaluate):
            self._log_evaluation(done, rows=None if last else self.cadence.evaluate_rows)
        self.stopped = self.stop(done) and not last
        if last or self.stopped or _due(done, self.cadence.checkpoint):
            self.save(done)
        if last or self.stopped:
            self.saver.wait()
        return not self.stopped

    def _offered(self, done: int) -> nn.Module:
        """What peers see of the group after `done` completed steps."""
        self.strategy.settle()
        return self.average.offer(done) if self.average is not None and self.publish_average else self.model

    def predicting(self, done: int) -> nn.Module:
        """The model that predicts after `done` completed steps: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.ready(done)

    def train_step(self, step: int, *, of_group: int | None = None) -> Iterator[None]:
        """Compute this process's batches of `step` (0-based) and make the update.

        of_group: the group's step, by which teachers are heard, where `step` counts the batches of one worker
        It pauses wherever the other groups have to take their turns first.
        """
        heard_at = step if of_group is None else of_group
        units = units_of(self.strategy, self.mesh, step=step)
        staged = self.loader[step]  # in the host's memory, whose sums an accelerator need not be asked for
        counts = self.strategy.count(staged)
        batches = [batch.to(self.device) for batch in staged]
        for unit, batch, own, count in zip(units, batches, staged, counts, strict=True):
            worker = unit.worker
            with self.strategy.worker(worker) as spread:
                group = self.mesh.group.index
                self._seed(derive(self.seed, "dropout", group=group, replica=worker, step=unit.batch))
                model = self.model if spread is None else spread
                logits, self.carry[worker] = self.task.forward(model, batch, self.carry.get(worker))
                if isinstance(self.teacher, Shows) and self.teacher.show(step, worker, logits.detach()):
                    yield
                soft = self.teacher.soft_targets(heard_at, worker, batch, logits.detach())
                sums = self.task.loss(logits, batch, soft)
                (sums.total / count).backward()
            weights = label_weights(own)
            losses = Losses(sums.label.detach(), count=weights, examples=len(own.targets))
            if sums.distillation is not None:
                losses.distillation, losses.soft_count = sums.distillation.detach(), weights
            self.window.add(losses)
        self.strategy.step(step)
        if isinstance(self.strategy, Serving):
            for losses in self.strategy.take_losses():
                self.window.add(losses)
                if losses.soft_count and isinstance(self.teacher, HeardElsewhere):
                    self.teacher.hear(step)

    def take_window(self) -> Window:
        """The losses since the last call, which are then forgotten."""
        window, self.window = self.window, Window()
        return window

    def _seed(self, seed: int) -> None:
        """Seed the generator that dropout draws from.

        `torch.manual_seed` gives the same numbers but formats three stack traces per call, one for each
        kind of accelerator that may still be initialised: 0.1 ms.
        """
        if self.device == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _count_time(self, began: float) -> None:
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self.window.seconds += elapsed

    def _log_training(self, done: int, heard: dict[str, Any]) -> None:
        window = self.take_window()
        own = [float(window.label), float(window.distillation), window.count, window.soft_count, window.examples]
        sums = torch.stack(self.mesh.gather(torch.tensor(own, dtype=torch.float64))).sum(dim=0).tolist()
        label = sums[0] / sums[2]
        distillation = sums[1] / sums[3] if sums[3] else None
        self._write(
            "train",
            done,
            label_loss=label,
            distill_loss=distillation,
            grad_norm=self.optimizer.grad_norm(),
            lr=self.optimizer.last_lr,
            examples_per_second=round(sums[4] / max(window.seconds, 1e-9), 1),
            **(self.strategy.log() if isinstance(self.strategy, Scheduled) else {}),
            **heard,
            **self.saver.log(),
        )
        if not math.isfinite(label) or (distillation is not None and not math.isfinite(distillation)):
            raise Diverged(
                f"group {self.mesh.group.index}: the loss is {label} at step {done}. The last checkpoint is kept. "
                "Try a lower optim.lr, optim.warmup or optim.clip_norm."
            )
        if self.task.main_metric in CROSS_ENTROPIES and label < -ROUNDING:
            raise Diverged(
                f"group {self.mesh.group.index}: the cross-entropy is {label} at step {done}, and none is below 0. The last "
                "checkpoint is kept. Look for labels outside their range: 0 and 1, or the numbers of the classes."
            )

    def _log_evaluation(self, done: int, *, rows: int | None) -> None:
        self.strategy.settle()
        results = self._evaluate(self.predicting(done), rows, file=f"{step_name(done)}.npy")
        if self.average is not None:
            own = self._evaluate(self.model, rows, file=f"{step_name(done)}{LAST_WEIGHTS_FILE}")
            results |= {f"{LAST_WEIGHTS}{name}": value for name, value in own.items()}
        self._write("evaluate", done, split="validation", **results)
        self.model.train()

    def _write(self, kind: str, done: int, **values: Any) -> None:
        if self.mesh.is_writer:
            self.log.write(
                kind,
                group=self.mesh.group.index,
                step=done,
                examples=done * self.clock.examples_per_step,
                seconds=round(self.seconds, 3),
                **values,
            )

    def _evaluate(self, model: nn.Module, rows: int | None, *, file: str) -> dict[str, float]:
        """Metrics of a model on the first `rows` validation rows, None for all; its predictions go to `file` if they are kept.

        All processes of the group take part; the writer has the numbers.
        """
        order = self.task.evaluation_order("validation", rows=rows, batch_size=self.cadence.evaluate_batch)
        keep = self.cadence.keep_evaluations
        metrics, kept = measure_spread(
            self.task, model, order, split="validation", device=self.device, mesh=self.mesh, keep=keep
        )
        if kept is not None:
            root = self.run.evaluation_root(self.mesh.group.index)
            root.mkdir(parents=True, exist_ok=True)
            np.save(root / file, kept)
        return metrics

    def save(self, done: int) -> None:
        """Save everything that the next step needs; all processes of the group call it, one writes, in the background."""
        self.strategy.settle()
        carry: dict[int, Carry] = {}
        for part in self.mesh.gather_to_writer(self.carry):
            carry.update(part)
        own = {name: float(getattr(self.window, name)) for name in Window.__dataclass_fields__}
        parts = self.mesh.gather_to_writer(own)
        window = {name: sum(part[name] for part in parts) for name in own}
        window["seconds"] = own["seconds"]  # the processes share the clock, not the examples
        state = {
            "step": done,
            "unfinished": self.unfinished,
            "strategy": self.strategy.state_dict(),
            "teacher": self.teacher.state_dict(),
            "carry": carry,
            "seconds": self.seconds,
            "window": window,
        }
        if self.mesh.is_writer:
            average = None if self.average is None else self.average.ready(done)
            if self.average is not None:
                state["average"] = self.average.state_dict()
            self.saver.save(step=done, model=self.model, average=average, state=state)

    def load(self, step: int) -> None:
        """Continue from the checkpoint of `step`; Damaged if its state is not one that these parts have saved."""
        state = checkpoint.load(self.run, self.mesh.group.index, step=step, model=self.model)
        with checkpoint.restoring(self.run, self.mesh.group.index, step=step):
            self.strategy.load_state_dict(state["strategy"])
            self.teacher.load_state_dict(state["teacher"])
            self.carry = state["carry"]
            self.seconds = state["seconds"]
            self.unfinished = state["unfinished"]
            if self.mesh.is_writer:
                self.window = Window(**state["window"])
            if self.average is not None:
                checkpoint.load_weights(
                    self.run, self.mesh.group.index, step=step, model=self.average.model, averaged=True
                )
                self.average.load_state_dict(state["average"], step=step)
        # Peers may still ask for it, and what was published may be gone.
        self.teacher.publish(step, lambda: self.predicting(step) if self.publish_average else self.model)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
