"""Label smoothing as a constant teacher: the same soft target for every example.

Source: Anil et al. 2018, section 3.3: the smoothing term takes the place of the distillation term and
matches the uniform or the unigram distribution. Its weights are the loss's, 1 - epsilon and epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odist.losses import Soft
from odist.tasks.base import Batch
from odist.teachers import ConstantOptions
from odist.teachers.base import TeacherSetup


class Constant:
    """One distribution for all examples.

    distribution: [] probability of the positive class, or [classes]
    """

    lookahead = 1

    @classmethod
    def of(cls, options: ConstantOptions, setup: TeacherSetup) -> Constant:
        prior = setup.task.prior()
        classes = 2 if prior.ndim == 0 else len(prior)
        return cls(prior if options.distribution == "unigram" else torch.full_like(prior, 1 / classes))

    def __init__(self, distribution: Tensor) -> None:
        self.distribution = distribution

    def forwards(self, step: int) -> int:
        return 0

    def due(self, step: int) -> bool:
        return False

    def publish(self, step: int, offered: Callable[[], nn.Module]) -> None:
        pass

    def refresh(self, step: int) -> None:
        pass

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        self.distribution = self.distribution.to(logits.device)
        return Soft((self.distribution,), kind="probabilities")

    def log(self) -> dict[str, Any]:
        return {}

    def summary(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
