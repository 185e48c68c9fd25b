"""A share of the weights: the parameters that one server process keeps and updates.

A server that is not sharded has one share with everything. Shares are whole tensors, so that an update has the same bits for any
number of them; only the norm that clips is one of all shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from odist.optim import Optimizer
from odist.strategies.base import tree_sum


class Share:
    """One process's part of a server's weights.

    optimizer: over all parameters, of which only those of this share get gradients here
    shard: number of this share among `num_shards`
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, shard: int, num_shards: int) -> None:
        parameters = list(model.parameters())
        self.parameters = divided(parameters, num_shards)[shard]
        own = {id(parameter) for parameter in self.parameters}
        self.others = [parameter for parameter in parameters if id(parameter) not in own]
        self.optimizer = optimizer

    def use(self, gradients: Sequence[list[Tensor | None]]) -> None:
        """Take the sum of these gradients of the share's parameters for the next update; they are overwritten."""
        for parameter, gradient in zip(self.parameters, tree_sum(gradients), strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state of this share's parameters."""
        return self.optimizer.state_dict(only=self.parameters)


def divided(parameters: Sequence[nn.Parameter], num_shards: int) -> list[list[nn.Parameter]]:
    """The parameters of each shard, in the model's order: the largest first, each to the shard that has least."""
    sizes = [parameter.numel() * parameter.element_size() for parameter in parameters]
    loads, owner = [0] * num_shards, [0] * len(parameters)
    for place in sorted(range(len(parameters)), key=lambda place: -sizes[place]):
        owner[place] = loads.index(min(loads))
        loads[owner[place]] += sizes[place]
    return [
        [parameter for parameter, of in zip(parameters, owner, strict=True) if of == shard]
        for shard in range(num_shards)
    ]


def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One optimizer's state of the states of its shares."""
    first, *others = states
    parts = [{**part, "state": dict(part["state"])} for part in first["parts"]]
    for other in others:
        for part, more in zip(parts, other["parts"], strict=True):
            part["state"].update(more["state"])
    for part in parts:
        part["state"] = dict(sorted(part["state"].items()))
    return {**first, "parts": parts}
