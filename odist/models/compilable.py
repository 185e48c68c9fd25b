"""Networks that torch.compile may compile, their copies too, and that say what they were made with."""

from __future__ import annotations

from typing import Any

from torch import nn


class Compilable(nn.Module):
    """A network that is compiled when it is finished, if that is wanted.

    made_with: its arguments, positional and named, with which an exported network is made again
    """

    compiled = False
    made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """Keep the arguments; a copy gets them with its other attributes."""
        network = super().__new__(cls)
        network.__dict__["made_with"] = (arguments, named)
        return network

    def finish(self, *, compile: bool) -> None:
        """Compile the finished layers."""
        self.compiled = compile
        if compile:
            self.compile()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.compiled:  # a copy, such as a teacher, is compiled anew
            self.compile()
