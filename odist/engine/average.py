"""The average of the weights that a training goes through, which predicts in their place.

One more copy of the model, and one pass over all its weights a step: about 1 ms a million weights on one core of a
processor, embedding tables included, of whose rows a step with sparse gradients changes few. When it is updated,
evaluated, published and saved is the trainer's business; that the weights themselves train on unchanged is the point
of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odist.tasks.base import Batch, Forward

# Training examples from which the statistics of batch norms are estimated anew; some thousands are enough by Wu and Johnson
# 2021, "Rethinking 'Batch' in BatchNorm".
STATISTICS_EXAMPLES = 2048


class WeightAverage:
    """Running average of a group's weights: exponential (`ema`) or equal shares (`swa`).

    model: whose parameters are averaged, after each step from `start` (0-based) on; before, it predicts itself
    decay: of `ema`, by step; None: equal shares
    batch_at: step -> a batch that was trained on then, a pure function: the same in every process

    After n averaged steps `ema` is the mean of n weights with shares decay^(n-1) ... decay, 1: the exponential average with the
    correction of its start by 1 - decay^n, as in Adam (Kingma and Ba 2015, section 3). Without it the random weights at the
    start would have the largest share for a whole horizon. `swa` is their plain mean (Izmailov et al. 2018, "Averaging
    weights leads to wider optima and better generalization"), here of every step instead of every cycle.

    Statistics of batch norms belong to the weights that they were collected with, so those of the average are estimated anew
    (Izmailov et al. 2018, section 3.2), with dropout off; other buffers are copied.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        forward: Forward,
        batch_at: Callable[[int], Batch],
        start: int,
        decay: float | None = None,
    ) -> None:
        self.source = model
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.eval()
        self.forward = forward
        self.batch_at = batch_at
        self.start = start
        self.decay = decay
        self.num_forwards = 0  # training examples that were passed through the average for what was offered to peers
        self._norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._ready_at = -1  # completed steps when the average was last made ready to predict
        self._estimated_from = 0  # training examples of its statistics

    def update(self, step: int) -> None:
        """Take in the model's weights after `step` completed steps."""
        number = step - self.start
        if number > 0:
            share = share_of_newest(number, decay=self.decay)
            with torch.no_grad():
                torch._foreach_lerp_(list(self.model.parameters()), list(self.source.parameters()), share)

    def begun(self, step: int) -> bool:
        """Whether anything has been averaged after `step` completed steps."""
        return step > self.start

    @torch.no_grad()
    def ready(self, step: int) -> nn.Module:
        """The average after `step` completed steps, in eval mode, with its own statistics of batch norms."""
        if step == self._ready_at:
            return self.model
        self._estimated_from = 0
        for own, source in zip(self.model.buffers(), self.source.buffers(), strict=True):
            own.copy_(source)
        if not self.begun(step):
            for own, source in zip(self.model.parameters(), self.source.parameters(), strict=True):
                own.copy_(source)
        elif self._norms:
            self._estimate_statistics(step)
        self.model.eval()
        self._ready_at = step
        return self.model

    def offer(self, step: int) -> nn.Module:
        """As `ready`, for what the group publishes: a cost of training, so its forwards are counted."""
        model = self.ready(step)
        self.num_forwards += self._estimated_from
        return model

    def _estimate_statistics(self, step: int) -> None:
        """Mean of the statistics of the newest batches, each normalised by itself; `torch.optim.swa_utils.update_bn`."""
        with collecting(self._norms):
            seen = 0
            while seen < STATISTICS_EXAMPLES and step > 0:
                step -= 1
                batch = self.batch_at(step)
                self.forward(self.model, batch, None)
                seen += len(batch.targets)
        self._estimated_from = seen

    def state_dict(self) -> dict[str, Any]:
        """What the weights, which `checkpoint.py` saves, do not say."""
        return {"num_forwards": self.num_forwards}

    def load_state_dict(self, state: dict[str, Any], *, step: int) -> None:
        """Go on after `step` completed steps, the weights of `model` being loaded already."""
        self.num_forwards = state["num_forwards"]
        self._ready_at = step


class GroupsMean(WeightAverage):
    """Mean of all groups' weights when they last met, see odist.teachers.population; before that the model predicts itself.

    Arguments: as of `WeightAverage`, without start and decay
    """

    def __init__(self, model: nn.Module, *, forward: Forward, batch_at: Callable[[int], Batch]) -> None:
        super().__init__(model, forward=forward, batch_at=batch_at, start=0)
        self.met = False

    def update(self, step: int) -> None:
        pass

    @torch.no_grad()
    def keep(self, step: int, means: Mapping[str, Tensor]) -> None:
        """Take the mean after `step` completed steps, by name of the parameter."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(means[name])
        self.met = True
        self._ready_at = -1

    def begun(self, step: int) -> bool:
        return self.met

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "met": self.met}

    def load_state_dict(self, state: dict[str, Any], *, step: int) -> None:
        super().load_state_dict(state, step=step)
        self.met = state["met"]


def share_of_newest(number: int, *, decay: float | None) -> float:
    """Share that the newest of `number` weights has in their average; decay: None for equal shares."""
    if decay is None or decay == 1:
        return 1 / number
    return (1 - decay) / (1 - decay**number)


def decay_of(horizon: float, *, examples_per_step: int) -> float:
    """Decay by step at which weights count 1/e after `horizon` examples.

    Source: Busbridge et al. 2023, "How to scale your EMA": with k times the batch the decay is taken to the power of k.
    """
    return math.exp(-examples_per_step / horizon)


@contextmanager
def collecting(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let batch norms forget their statistics and collect the plain mean of those of the batches that follow."""
    momentums = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    for norm, momentum in zip(norms, momentums, strict=True):
        norm.momentum = momentum
        norm.eval()
