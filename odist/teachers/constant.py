"""Label smoothing as a constant teacher: the same soft target for every example.

Source: Anil et al. 2018, section 3.3: the smoothing term takes the place of the distillation term and
matches the uniform or the unigram distribution. Its weights are the loss's, 1 - epsilon and epsilon.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odist.losses import Soft
from odist.tasks.base import Batch
from odist.teachers import ConstantOptions
from odist.teachers.base import TeacherSetup, WithoutPeers


class Constant(WithoutPeers):
    """One distribution for all examples.

    distribution: [] probability of the positive class, or [classes]
    """

    @classmethod
    def of(cls, options: ConstantOptions, setup: TeacherSetup) -> Constant:
        prior = setup.task.prior()
        classes = 2 if prior.ndim == 0 else len(prior)
        return cls(prior if options.distribution == "unigram" else torch.full_like(prior, 1 / classes))

    def __init__(self, distribution: Tensor) -> None:
        self.distribution = distribution

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        self.distribution = self.distribution.to(logits.device)
        return Soft((self.distribution,), kind="probabilities")
