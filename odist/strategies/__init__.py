"""How the workers of one group agree on one set of weights: every strategy by name, with its meaning and its options.

Options stand below `algorithm.` in the configuration. This file is read for help and completion, so it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from odist.config.key import BELOW_ONE, MISSING, NOT_NEGATIVE, POSITIVE, SHARE, key
from odist.config.options import options_of
from odist.errors import UserError
from odist.registry import Part

if TYPE_CHECKING:
    from odist.config.schema import Config
    from odist.strategies.base import StrategySetup
    from odist.strategies.schedule import Schedule
    from odist.strategies.turns import Turns


REDUCTIONS = {
    "exact": "the same bits for any number of processes",
    "fast": "by DistributedDataParallel, while backward runs",
}


@dataclass
class AllReduceOptions:
    reduce: str = key(
        "exact",
        "how gradients are summed over processes",
        choices=REDUCTIONS,
        younger=True,
        only_with="algorithm.strategy=allreduce",
    )
    compress: str = key(
        "none",
        "fast: gradients travel in this type",
        choices=("none", "bf16"),
        younger=True,
        only_with="algorithm.reduce=fast",
    )

    def check(self, config: Config) -> None:
        if self.compress != "none" and self.reduce == "exact":
            raise UserError(
                f"algorithm.compress={self.compress} with algorithm.reduce=exact: compressed gradients are not exact. Add "
                "algorithm.reduce=fast."
            )


SPEEDS = {
    "none": "algorithm.delay says how old gradients are",
    "constant": "all alike, so that each worker's gradient is workers - 1 updates old",
    "heavy_tailed": "a new time for every batch, of a Pareto distribution of shape 2",
    "stragglers": "every tenth worker, at least one, takes four times as long",
}
ASYNCHRONOUS = "algorithm=async, or algorithm=delayed with algorithm.speeds"


@dataclass
class TurnsOptions:
    """Options of asynchronous SGD, with real servers and simulated ones."""

    max_staleness: int | None = key(
        None,
        "async: updates that a gradient may be late; null: any number",
        bounds=NOT_NEGATIVE,
        younger=True,
        only_with=ASYNCHRONOUS,
    )
    backup_workers: int | None = key(
        None,
        "async: an update takes so many gradients fewer than workers, drops late ones; null: each",
        bounds=NOT_NEGATIVE,
        younger=True,
        only_with=ASYNCHRONOUS,
    )
    worker_ramp: int = key(
        0,
        "async: examples over which the number of active workers rises from 1",
        bounds=NOT_NEGATIVE,
        as_steps=True,
        younger=True,
        only_with=ASYNCHRONOUS,
    )

    def check(self, config: Config) -> None:
        spare = self.backup_workers
        if spare is None:
            pass
        elif spare >= config.workers:
            raise UserError(
                f"algorithm.backup_workers={spare} with workers={config.workers}: no gradient would be left. Choose "
                f"algorithm.backup_workers={config.workers - 1} or less, or more workers."
            )
        elif self.max_staleness is not None or self.worker_ramp:
            raise UserError(
                f"algorithm.backup_workers={spare}: no gradient is stale where workers wait for each other, so leave "
                "algorithm.max_staleness and algorithm.worker_ramp out."
            )
        teacher = options_of(config, "teachers")
        if config.exchange.name == "predictions":
            raise UserError(
                "exchange=predictions: groups predict the same batch at the same time, and asynchronous workers have none in "
                "common. Type exchange=memory, or exchange=store with launch=local."
            )
        if getattr(teacher, "lookahead", 1) > 1:
            raise UserError(
                f"exchange.lookahead={teacher.lookahead}: workers that take turns in any order have no coming batches "
                "that could be predicted in one pass. Type exchange.lookahead=1."
            )

    def used(self, workers: int) -> int:
        """Gradients whose mean makes an update."""
        return 1 if self.backup_workers is None else workers - self.backup_workers

    def turns(self, setup: StrategySetup) -> Turns:
        """A server's state at the beginning."""
        from odist.strategies.turns import Turns

        workers = setup.mesh.workers
        return Turns(
            workers,
            max_staleness=self.max_staleness,
            used=None if self.backup_workers is None else self.used(workers),
            ramp=round(self.worker_ramp / setup.batch),
        )


@dataclass
class ParameterServerOptions(TurnsOptions):
    connections: int = key(
        1,
        "async: connections of each worker, each with a share of the weights and a server thread",
        bounds=POSITIVE,
        younger=True,
        only_with="algorithm=async",
    )
    shards: int = key(
        1,
        "async: server processes of a group, each with a share of the weights",
        bounds=POSITIVE,
        younger=True,
        only_with="algorithm=async",
    )

    def check(self, config: Config) -> None:
        super().check(config)
        if config.launch.name != "local":
            raise UserError(
                f"launch={config.launch.name}: asynchronous SGD starts a process for each of its {config.workers} workers on this "
                "machine. Type launch=local, or simulate it in one process: algorithm=delayed algorithm.speeds=constant."
            )
        if getattr(options_of(config, "teachers"), "timing", "freshest") != "freshest":
            raise UserError(
                "exchange.timing=lockstep: the workers of asynchronous groups are at no agreed step. Type "
                "exchange.timing=freshest, or simulate the groups: algorithm.strategy=delayed."
            )


@dataclass
class DelayedOptions(TurnsOptions):
    delay: int | None = key(None, "delayed: updates between pull and push; null: workers - 1", bounds=NOT_NEGATIVE)
    speeds: str = key(
        "none",
        "delayed: simulated times of the workers, in place of algorithm.delay",
        choices=SPEEDS,
        younger=True,
        only_with="algorithm=delayed",
    )
    events: str | None = key(
        None,
        "delayed: finished run of algorithm=async whose turns are taken again",
        place="run",
        younger=True,
        only_with="algorithm=delayed",
    )

    def check(self, config: Config) -> None:
        speeds = None if self.speeds == "none" else self.speeds
        given = {"algorithm.delay": self.delay, "algorithm.speeds": speeds, "algorithm.events": self.events}
        several = [f"{name}={value}" for name, value in given.items() if value is not None]
        if len(several) > 1:
            raise UserError(f"{' with '.join(several)}: each says who takes which turn. Give one of them.")
        takes_turns = speeds is not None or self.events is not None
        if not takes_turns and (self.max_staleness is not None or self.worker_ramp):
            raise UserError(
                "algorithm.max_staleness and algorithm.worker_ramp belong to workers that have a speed: add "
                "algorithm.speeds=constant."
            )
        if not takes_turns and self.backup_workers is not None:
            raise UserError(
                f"algorithm.backup_workers={self.backup_workers}: who is late depends on the workers' speed. Add "
                "algorithm.speeds=heavy_tailed."
            )
        if takes_turns:
            super().check(config)

    def schedule(self, setup: StrategySetup) -> Schedule | None:
        """Who takes which turn; None where every update has the same delay."""
        from odist.strategies.events import event_file
        from odist.strategies.schedule import Schedule, recorded, seconds_of, simulated

        mesh = setup.mesh
        group, workers = mesh.group.index, mesh.workers
        used = None if self.backup_workers is None else self.used(workers)
        if self.events is not None:
            path = event_file(self.events, group)
            return Schedule(
                lambda: recorded(path, workers=workers, batch=setup.batch, used=used), per_step=used or workers
            )
        if self.speeds == "none":
            return None
        seconds = seconds_of(self.speeds, workers=workers, seed=setup.seed, group=group)
        return Schedule(lambda: simulated(lambda: self.turns(setup), seconds=seconds), per_step=used or workers)


@dataclass
class LocalSGDOptions:
    average_every: int = key(MISSING, "local_sgd: examples between averages", bounds=POSITIVE, as_steps=True)
    sync_share: float = key(
        0.0,
        "share of the run before the local steps, which is synchronous",
        bounds=SHARE,
        younger=True,
        only_with="algorithm=local_sgd",
    )


@dataclass
class DiLoCoOptions(LocalSGDOptions):
    outer_lr: float = key(
        0.7,
        "diloco: learning rate of the outer step",
        bounds=POSITIVE,
        younger=True,
        only_with="algorithm=diloco",
    )
    outer_momentum: float = key(
        0.9, "diloco: its Nesterov momentum", bounds=BELOW_ONE, younger=True, only_with="algorithm=diloco"
    )
    fragments: int = key(
        1,
        "diloco: parts of the weights that are agreed on one after another",
        bounds=POSITIVE,
        younger=True,
        only_with="algorithm=diloco",
    )


STRATEGIES = {
    "allreduce": Part("odist.strategies.allreduce:AllReduce", "one gradient over all", AllReduceOptions),
    "delayed": Part(
        "odist.strategies.delayed:Delayed", "gradients of older weights, as in asynchronous SGD", DelayedOptions
    ),
    "diloco": Part("odist.strategies.diloco:DiLoCo", "own steps, then an outer step along their mean", DiLoCoOptions),
    "local_sgd": Part("odist.strategies.local_sgd:LocalSGD", "own steps, then averages", LocalSGDOptions),
    "parameter_server": Part(
        "odist.strategies.parameter_server:ParameterServer",
        "asynchronous SGD: a process for every worker",
        ParameterServerOptions,
    ),
}
