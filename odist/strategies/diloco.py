"""DiLoCo: local steps by an inner optimizer, then one step of an outer one along the workers' mean difference.

Source: Douillard et al. 2023, "DiLoCo: Distributed low-communication training of language models", algorithm 1: inner AdamW,
outer SGD with Nesterov's momentum, whose gradient is the shared weights less the mean of the workers'. The inner optimizer is
the run's (`optim`). In fragments: Douillard et al. 2025, "Streaming DiLoCo with overlapping communication", section 2.2,
without its overlap and without its compression.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from odist.errors import UserError
from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies import DiLoCoOptions
from odist.strategies.base import StrategySetup, clones, copy_into
from odist.strategies.local_sgd import LocalSGD
from odist.sums import GroupSum


class DiLoCo(LocalSGD):
    """Local steps around shared weights, which are what is evaluated.

    average_every, sync_steps: as in local SGD; num_steps: of the run, after the last of which all agree once more
    outer_lr, outer_momentum: of the outer step. With 1 and 0 the shared weights are the workers' mean, to the bit
    fragments: parts of the weights that are agreed on one after another, each every `average_every` steps; parameter
        tensor i belongs to fragment i modulo their number
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        average_every: int,
        num_steps: int,
        sync_steps: int = 0,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        fragments: int = 1,
    ) -> None:
        super().__init__(mesh, average_every=average_every, sync_steps=sync_steps)
        self.num_steps = num_steps
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.fragments = fragments

    @classmethod
    def of(cls, options: DiLoCoOptions, setup: StrategySetup) -> DiLoCo:  # type: ignore[override]
        every = max(1, setup.clock.steps(options.average_every))
        if options.fragments > every:
            raise UserError(
                f"algorithm.fragments={options.fragments} with algorithm.average_every={options.average_every}, which is "
                f"{every} steps: one fragment a step at most. Type algorithm.fragments={every} or less."
            )
        return cls(
            setup.mesh,
            average_every=every,
            num_steps=setup.clock.num_steps,
            sync_steps=round(options.sync_share * setup.clock.num_steps),
            outer_lr=options.outer_lr,
            outer_momentum=options.outer_momentum,
            fragments=options.fragments,
        )

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().prepare(model, optimizer)
        self.momentum = [torch.zeros_like(weight) for weight in self.mean]
        self.shared_statistics = clones(self.buffers)
        chosen = [list(range(one, len(self.mean), self.fragments)) for one in range(self.fragments)]
        self._fragments = [(places, GroupSum(self.mesh, [self.mean[at] for at in places])) for places in chosen]
        self._of_statistics = GroupSum(self.mesh, self.buffers)

    def agree(self) -> None:
        last = self._step == self.num_steps
        for number, (places, sums) in enumerate(self._fragments):
            if last or self._step % self.average_every == number * self.average_every // self.fragments:
                self._outer_step(places, sums)
        if self.buffers:
            if last or self._step % self.average_every == 0:
                self.shared_statistics = self.means(self.statistics, sums=self._of_statistics)
                for statistics in self.statistics:
                    copy_into(statistics, self.shared_statistics)
            copy_into(self.buffers, self.shared_statistics)
        self.settled = True

    @torch.no_grad()
    def _outer_step(self, places: list[int], sums: GroupSum) -> None:
        """Agree on the parameters of one fragment."""
        means = self.means([[weights[at] for at in places] for weights in self.weights], sums=sums)
        for at, mean in zip(places, means, strict=True):
            shared, momentum = self.mean[at], self.momentum[at]
            if self.outer_momentum:
                momentum.mul_(self.outer_momentum).add_(shared - mean)
            shared.lerp_(mean, self.outer_lr)
            if self.outer_momentum:
                shared.sub_(momentum, alpha=self.outer_lr * self.outer_momentum)
            for weights in self.weights:
                weights[at].copy_(shared)

    def _part(self) -> None:
        super()._part()
        self.shared_statistics = clones(self.buffers)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "momentum": self.momentum, "shared_statistics": self.shared_statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        copy_into(self.momentum, state["momentum"])
        copy_into(self.shared_statistics, state["shared_statistics"])
