"""bfloat16: the student's products by autocast, the teachers' matrices cast once; losses and statistics stay float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odist.config.schema import Config
from odist.tasks.base import Batch, Carry, Forward


def in_bf16(config: Config) -> bool:
    """Whether a run computes its products in bfloat16."""
    on_paper_scale = config.scale == "paper" and config.launch.device != "cpu"
    return config.train.precision == "bf16" or (config.train.precision == "auto" and on_paper_scale)


def mixed(forward: Forward, config: Config) -> Forward:
    """`forward` with its products in the precision of a run, its logits in float32."""
    if not in_bf16(config):
        return forward
    kind = torch.device(config.launch.device).type

    def in_mixed_precision(model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        with torch.autocast(kind, dtype=torch.bfloat16):
            logits, carry = forward(model, batch, carry)
        return logits.float(), carry

    return in_mixed_precision


def as_teacher(model: nn.Module, config: Config) -> nn.Module:
    """A model that only predicts, in the precision of a run: its matrices in bfloat16 take half the memory and no cast.

    Vectors and buffers (biases, gains, running statistics) stay float32. Weights that are loaded later are cast on the way.
    """
    if in_bf16(config):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model
