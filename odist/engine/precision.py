"""bfloat16: the student's products by autocast, the teachers' matrices cast once; losses and statistics stay float32."""

from __future__ import annotations

from torch import nn

from odist.config.options import options_of
from odist.config.schema import Config
from odist.products import cast_matrices, in_bf16_products
from odist.tasks.base import Forward


def in_bf16(config: Config) -> bool:
    """Whether a run computes its products in bfloat16."""
    on_paper_scale = config.scale == "paper" and config.launch.device != "cpu"
    return config.train.precision == "bf16" or (config.train.precision == "auto" and on_paper_scale)


def mixed(forward: Forward, config: Config) -> Forward:
    """`forward` with its products in the precision of a run, its logits in float32."""
    return in_bf16_products(forward) if in_bf16(config) else forward


def as_teacher(model: nn.Module, config: Config) -> nn.Module:
    """A model that only predicts, in the precision of a run; weights that are loaded later are cast on the way.

    Where its matrices will be quantised, they are not rounded before.
    """
    if in_bf16(config) and getattr(options_of(config, "teachers"), "teacher_precision", "auto") != "int8":
        cast_matrices(model)
    return model
