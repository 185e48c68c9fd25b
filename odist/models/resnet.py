"""Residual networks: the paper's ImageNet model and small ones for images of 32 pixels.

Parameters are named as in torchvision, so its weights load.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from odist.errors import UserError
from odist.models.image_network import ImageNetwork, convolution

DEPTHS = (8, 18, 20, 32, 50)
LARGE = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # blocks of each stage: He et al. 2016, table 1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    NORM_BEHIND: ClassVar = {"conv1": "bn1", "conv2": "bn2"}
    expansion = 1

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(width_in, width, size=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, size=3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(width_in, width, stride=stride)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        values = F.relu(self.bn1(self.conv1(images)), inplace=True)
        values = self.bn2(self.conv2(values))
        shortcut = images if self.downsample is None else self.downsample(images)
        return F.relu(values + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5 right), stride in the 3x3 as in Goyal et al. 2017."""

    NORM_BEHIND: ClassVar = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
    expansion = 4

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        width_out = self.expansion * width
        self.conv1 = convolution(width_in, width, size=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, width_out, size=1)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.downsample = projection(width_in, width_out, stride=stride)
        nn.init.zeros_(self.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        values = F.relu(self.bn1(self.conv1(images)), inplace=True)
        values = F.relu(self.bn2(self.conv2(values)), inplace=True)
        values = self.bn3(self.conv3(values))
        shortcut = images if self.downsample is None else self.downsample(images)
        return F.relu(values + shortcut, inplace=True)


class ResNet(ImageNetwork):
    """Image classifier of `depth` weighted layers.

    num_classes: outputs
    depth: 18 or 50, of stages of 64-128-256-512 behind a 7x7 stem of stride 2 and a pooling; 8, 20 or 32, of stages of
        16-32-64 behind a 3x3 stem, for images of 32 pixels
    dropout: probability before the last layer
    others: see `ImageNetwork`
    Source: He et al. 2016, sections 3.4 and 4.2; Goyal et al. 2017, section 5.1: stride in the 3x3, last gain of each
    block zero at the start, last layer normal 0.01. Our choice: the small ones too project where the width grows.
    """

    NORM_BEHIND: ClassVar = {"conv1": "bn1"}

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int,
        dropout: float = 0.0,
        channels_last: bool = False,
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise UserError(f"model.depth={depth}: choose one of {', '.join(map(str, DEPTHS))}.")
        self.stem_pools = depth in LARGE
        blocks = LARGE.get(depth) or 3 * ((depth - 2) // 6,)
        block = Bottleneck if depth == 50 else BasicBlock
        width = 64 if self.stem_pools else 16
        self.conv1 = convolution(3, width, size=7, stride=2) if self.stem_pools else convolution(3, width, size=3)
        self.bn1 = nn.BatchNorm2d(width)
        width_in = width
        self.stages = [f"layer{stage + 1}" for stage in range(len(blocks))]
        for stage, count in enumerate(blocks):
            made = []
            for number in range(count):
                made.append(block(width_in, width << stage, stride=2 if stage > 0 and number == 0 else 1))
                width_in = block.expansion * (width << stage)
            self.add_module(self.stages[stage], nn.Sequential(*made))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width_in, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.settle(channels_last=channels_last, bf16=bf16, compile=compile)

    def logits(self, images: Tensor) -> Tensor:
        values = self.conv1(images)
        values = F.relu(self.bn1(values), inplace=True)
        if self.stem_pools:
            values = F.max_pool2d(values, 3, stride=2, padding=1)
        for stage in self.stages:
            values = self.get_submodule(stage)(values)
        return self.fc(self.dropout(values.mean(dim=(2, 3))))


def projection(width_in: int, width_out: int, *, stride: int) -> nn.Sequential | None:
    """The shortcut where shapes change, None where they do not (He et al. 2016, section 3.3, option B)."""
    if stride == 1 and width_in == width_out:
        return None
    return nn.Sequential(convolution(width_in, width_out, size=1, stride=stride), nn.BatchNorm2d(width_out))
