"""How the workers of one group agree on one set of weights: every strategy by name, with its meaning and its options.

Options stand below `algorithm.` in the configuration. This file is read for help and completion, so it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from odist.config.key import BELOW_ONE, MISSING, NOT_NEGATIVE, POSITIVE, SHARE, key
from odist.errors import UserError
from odist.registry import Part

if TYPE_CHECKING:
    from odist.config.schema import Config


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


@dataclass
class DelayedOptions:
    delay: int | None = key(None, "delayed: updates between pull and push; null: workers - 1", bounds=NOT_NEGATIVE)


@dataclass
class LocalSGDOptions:
    average_every: int = key(MISSING, "local_sgd: examples between averages", bounds=POSITIVE, as_steps=True)
    sync_share: float = key(
        0.0,
        "share of the run before the local steps, in which gradients are summed (post-local SGD)",
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
}
