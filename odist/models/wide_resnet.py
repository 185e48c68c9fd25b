"""Wide residual networks for images of 32 pixels: few layers, many channels, batch norm and ReLU before convolutions.

Source: Zagoruyko and Komodakis 2016, "Wide residual networks".
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from odist.errors import UserError
from odist.models.image_network import ImageNetwork, convolution


class WideBlock(nn.Module):
    """Two 3x3 convolutions with dropout between them, and a shortcut (figure 1d)."""

    NORM_BEHIND: ClassVar = {"conv1": "bn2"}

    def __init__(self, width_in: int, width: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = convolution(width_in, width, size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(width, width, size=3)
        same = stride == 1 and width_in == width
        self.shortcut = None if same else convolution(width_in, width, size=1, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        active = F.relu(self.bn1(images), inplace=True)
        values = self.dropout(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return self.conv2(values) + (images if self.shortcut is None else self.shortcut(active))


class WideResNet(ImageNetwork):
    """WRN-depth-width: three stages of 16, 32 and 64 times `width` channels behind a 3x3 stem of 16.

    num_classes: outputs; depth: 6n + 4 layers, n blocks a stage; dropout: between the convolutions of a block
    others: see `ImageNetwork`
    Source: Zagoruyko and Komodakis 2016, table 1 and sections 2.4 and 3.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int,
        width: int,
        dropout: float = 0.0,
        channels_last: bool = False,
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        count, rest = divmod(depth - 4, 6)
        if count < 1 or rest:
            raise UserError(
                f"model.depth={depth}: a wide residual network has 10, 16, 22, 28 ... layers. Type model.depth="
                f"{6 * max(1, round((depth - 4) / 6)) + 4}."
            )
        self.conv1 = convolution(3, 16, size=3)
        width_in = 16
        self.stages = ["layer1", "layer2", "layer3"]
        for number, name in enumerate(self.stages):
            own = (16 << number) * width
            strides = [1 if number == 0 else 2] + [1] * (count - 1)
            widths = [width_in] + [own] * (count - 1)
            pairs = zip(widths, strides, strict=True)
            blocks = [WideBlock(before, own, stride=stride, dropout=dropout) for before, stride in pairs]
            self.add_module(name, nn.Sequential(*blocks))
            width_in = own
        self.bn1 = nn.BatchNorm2d(width_in)
        self.fc = nn.Linear(width_in, num_classes)
        nn.init.zeros_(self.fc.bias)
        self.settle(channels_last=channels_last, bf16=bf16, compile=compile)

    def logits(self, images: Tensor) -> Tensor:
        values = self.conv1(images)
        for stage in self.stages:
            values = self.get_submodule(stage)(values)
        return self.fc(F.relu(self.bn1(values), inplace=True).mean(dim=(2, 3)))
