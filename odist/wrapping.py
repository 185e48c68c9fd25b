"""Models inside DistributedDataParallel, FSDP2 or torch.compile: the module itself, and its whole state by plain names.

Peers that train the same network, one under a wrapper and one without, so read each other's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED = "_orig_mod"  # where torch.compile keeps the module, and a part of its names


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that DistributedDataParallel, DataParallel and torch.compile stand around."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(model._modules.get(COMPILED), nn.Module):
            model = model.get_submodule(COMPILED)
        else:
            return model


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the parameters, as under FSDP2 and tensor parallelism."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the module itself, detached, without a copy where there is no need.

    Of a sharded model every process has to call it; the first has all of them, in the host's memory, the others none.
    """
    own = unwrapped(model)
    if is_sharded(own):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole: dict[str, Any] = get_model_state_dict(own, options=options)
        return whole
    return {name.replace(f"{COMPILED}.", ""): tensor.detach() for name, tensor in own.state_dict().items()}


def load_full_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what `full_state` gave into a model; into a sharded one each process puts its part."""
    own = unwrapped(model)
    if is_sharded(own):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(own, dict(state), options=StateDictOptions(full_state_dict=True))
        return
    names = {name.replace(f"{COMPILED}.", ""): name for name in own.state_dict()}
    own.load_state_dict({names.get(name, name): tensor for name, tensor in state.items()})
