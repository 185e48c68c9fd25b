"""How the workers of one group agree on one set of weights: every strategy by name, with its meaning and its options.

Options stand below `algorithm.` in the configuration. This file is read for help and completion, so it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from odist.config.key import MISSING, NOT_NEGATIVE, POSITIVE, key
from odist.registry import Part


@dataclass
class DelayedOptions:
    delay: int | None = key(None, "delayed: updates between pull and push; null: workers - 1", bounds=NOT_NEGATIVE)


@dataclass
class LocalSGDOptions:
    average_every: int = key(MISSING, "local_sgd: examples between averages", bounds=POSITIVE, as_steps=True)


STRATEGIES = {
    "allreduce": Part("odist.strategies.allreduce:AllReduce", "one gradient over all"),
    "delayed": Part(
        "odist.strategies.delayed:Delayed", "gradients of older weights, as in asynchronous SGD", DelayedOptions
    ),
    "local_sgd": Part("odist.strategies.local_sgd:LocalSGD", "own steps, then averages", LocalSGDOptions),
}
