"""A strategy, a teacher and an exchange of another package, each with an option of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from odist.config.key import POSITIVE, SHARE, key
from odist.errors import UserError
from odist.exchange.base import ExchangeSetup, Weights
from odist.exchange.memory import MemoryExchange
from odist.losses import Soft
from odist.strategies.base import StrategySetup, clones
from odist.strategies.local_sgd import LocalSGD
from odist.tasks.base import Batch
from odist.teachers import PeersOptions
from odist.teachers.base import TeacherSetup
from odist.teachers.peers import Peers


class Gossip(LocalSGD):
    """Each worker takes over a share of the next one's weights after every step; they stand in a ring."""

    spreads_workers = False

    @dataclass
    class Options:
        share: float = key(0.5, "share of the next worker's weights", bounds=SHARE)

        def check(self, config: Any) -> None:
            if config.workers < 2:
                raise UserError(f"workers={config.workers}: gossip needs somebody to talk to. Type workers=2.")

    @classmethod
    def of(cls, options: Gossip.Options, setup: StrategySetup) -> Gossip:
        strategy = cls(setup.mesh, average_every=sys.maxsize)
        strategy.share = options.share
        return strategy

    def step(self, step: int) -> None:
        before = [clones(weights) for weights in self.weights]
        for own, following in zip(self.weights, [*before[1:], before[0]], strict=True):
            for weight, other in zip(own, following, strict=True):
                weight.lerp_(other, self.share)
        super().step(step)


class Tempered(Peers):
    """Peers whose predictions are softened."""

    @dataclass
    class Options(PeersOptions):
        softness: float = key(2.0, "what the peers' logits are divided by", bounds=POSITIVE)

    @classmethod
    def of(cls, options: Tempered.Options, setup: TeacherSetup) -> Tempered:
        teacher = super().of(options, setup)
        teacher.softness = options.softness
        return teacher

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        soft = super().soft_targets(step, worker, batch, logits)
        return soft and replace(soft, values=tuple(value / self.softness for value in soft.values))


class Rounded(MemoryExchange):
    """Weights in memory, rounded to what a slow line would carry."""

    @dataclass
    class Options:
        digits: int = key(2, "decimal places of a published number", bounds=POSITIVE)

    @classmethod
    def of(cls, options: Rounded.Options, setup: ExchangeSetup) -> Rounded:
        end = super().of(options, setup)
        end.digits = options.digits
        return end

    def publish(self, step: int, weights: Weights) -> None:
        super().publish(step, {name: tensor.round(decimals=self.digits) for name, tensor in weights.items()})
