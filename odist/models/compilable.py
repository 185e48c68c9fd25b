"""Networks that torch.compile may compile, their copies too."""

from __future__ import annotations

from typing import Any

from torch import nn


class Compilable(nn.Module):
    """A network that is compiled when it is finished, if that is wanted."""

    compiled = False

    def finish(self, *, compile: bool) -> None:
        """Compile the finished layers."""
        self.compiled = compile
        if compile:
            self.compile()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.compiled:  # a copy, such as a teacher, is compiled anew
            self.compile()
