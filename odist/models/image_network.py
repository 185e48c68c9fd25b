"""What image classifiers have in common: memory format, bfloat16, compilation; convolutions and their start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odist.models.compilable import Compilable


class ImageNetwork(Compilable):
    """A classifier of images whose last layer is `fc`. A subclass has `logits` and calls `settle` when it is built.

    channels_last: keep weights and images in that memory format, which is faster on most hardware
    bf16: convolutions and matrix products in bfloat16 (torch.autocast); weights and logits stay float32
    compile: by torch.compile; its first steps take a minute
    """

    fc: nn.Linear

    def settle(self, *, channels_last: bool, bf16: bool, compile: bool) -> None:
        """Bring the finished layers into the memory format, and compile them."""
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.bf16 = bf16
        self.finish(compile=compile)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of normalised images [batch, 3, height, width]."""
        kind = images.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bf16 or torch.is_autocast_enabled(kind)):
            logits = self.logits(images.contiguous(memory_format=self.memory_format))
        return logits.to(self.fc.weight.dtype)

    def logits(self, images: Tensor) -> Tensor:
        """As `forward`, of images in the memory format of the weights and in whatever type the products have."""
        raise NotImplementedError


def convolution(width_in: int, width_out: int, *, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1.

    Source of the start: He et al. 2015, "Delving deep into rectifiers", equation 14 (normal, fan-out).
    """
    layer = nn.Conv2d(width_in, width_out, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
