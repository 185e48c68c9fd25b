"""What a configuration learns: its task, its horizon and its model at step 0."""

from __future__ import annotations

import torch
from torch import nn

from odist import registry
from odist.config.groups import of_group
from odist.config.options import options_of
from odist.config.schema import Config
from odist.engine.devices import with_threads
from odist.engine.precision import mixed
from odist.errors import UserError
from odist.optim import Clock
from odist.rng import derive
from odist.tasks.base import Task


def set_up_torch(config: Config) -> None:
    """Threads of this process, which are part of the bits, and one warning less (sparse gradients are trusted)."""
    torch.set_num_threads(config.launch.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()


def build_task(config: Config) -> Task:
    """Make the task of a configuration; its forward computes in the precision of the run."""
    task: Task = registry.find("tasks", config.task.name)(with_threads(config))
    task.forward = mixed(task.forward, config)  # type: ignore[method-assign,assignment]
    return task


def used_workers(config: Config) -> int:
    """The virtual workers of a group whose batches make a step: all but spare ones."""
    return config.workers - (getattr(options_of(config, "strategies"), "backup_workers", None) or 0)


def make_clock(config: Config, task: Task) -> Clock:
    """The horizon: `train.passes` or `train.max_examples`, whichever comes first, in whole steps."""
    rows = task.num_rows("train")
    examples = int(config.train.passes * rows)
    if config.train.max_examples is not None:
        examples = min(examples, config.train.max_examples)
    per_step = config.train.batch * used_workers(config)
    if rows == 0 and config.data.path is not None:
        raise UserError(
            f"data.path={config.data.path}: holds no training rows, for it was prepared to evaluate finished runs. "
            f"Type odist eval RUN --data {config.data.path}"
        )
    if config.data.path is not None and task.num_rows("validation") == 0:
        raise UserError(
            f"data.path={config.data.path}: holds no validation rows, by which every run is evaluated. Prepare it "
            "again with a --validation-fraction above 0."
        )
    if examples < per_step:
        raise UserError(
            f"the horizon of {examples} examples (train.passes={config.train.passes} of {rows} training rows, "
            f"train.max_examples={config.train.max_examples}) is less than one step of {per_step} "
            "(train.batch x workers): lower train.batch or workers, or raise train.passes."
        )
    return Clock(per_step, examples // per_step)


def build_model(config: Config, task: Task, *, group: int) -> nn.Module:
    """The model of a group at step 0; group 0's is the same for every algorithm of one seed."""
    own = of_group(config, group)
    if own.model != config.model:
        task = build_task(own)
    torch.manual_seed(derive(config.seed, "init", group=group))
    return task.build_model().to(config.launch.device)


def forward_flops(config: Config, task: Task, model: nn.Module) -> float:
    """Floating-point operations of one example's forward."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = task.evaluation_order("validation", rows=None, batch_size=config.train.batch).ids(0)
    batch = task.batch(ids, "validation").to(config.launch.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.forward(model, batch, None)
    return float(counter.get_total_flops() / len(ids))
