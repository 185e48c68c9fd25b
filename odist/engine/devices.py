"""Which device a process computes on; asked of torch, and only where something else than the CPU is wanted."""

from __future__ import annotations

import os
from dataclasses import replace

from odist.config.schema import Config, ImageNetConfig
from odist.errors import UserError
from odist.run.provenance import num_cores


def available(device: str) -> bool:
    """Whether torch can compute on `device` (cpu or cuda) here."""
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


def require(device: str, *, asked: str, instead: str) -> None:
    """Raise UserError unless torch can compute on `device` (auto, cpu or cuda) here.

    asked, instead: what was typed and what to type, for the message
    """
    if device != "auto" and not available(device):
        import torch

        why = "sees no CUDA device here" if torch.backends.cuda.is_built() else "was built without CUDA"
        raise UserError(f"{asked}: torch {torch.__version__} {why}. Type {instead}.")


def settled(config: Config) -> Config:
    """The configuration with the device of this machine in place of `auto`, so that a run's folder says what it was."""
    device = config.launch.device
    return config if device != "auto" else on_device(config, "cuda" if available("cuda") else "cpu")


def choose(config: Config, local_rank: int = 0) -> str:
    """The device of a process, `cpu` or `cuda:N`, which becomes the current one of its main thread.

    local_rank: its number among the processes of this machine, which share the devices in turns if there are fewer.
    Raises UserError where the processes of one group would have to share one: NCCL cannot do that.
    """
    device = settled(config).launch.device
    require(device, asked=f"launch.device={device}", instead="launch.device=cpu")
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count()
    here = min(config.launch.processes, int(os.environ.get("LOCAL_WORLD_SIZE", config.launch.processes)))
    if here > count:
        raise UserError(
            f"launch.processes={config.launch.processes}: {here} of a group's processes run on this machine, which has "
            f"{count} {'device' if count == 1 else 'devices'}, and no two of them can share one. "
            f"Type launch.processes={count}."
        )
    torch.cuda.set_device(local_rank % count)
    return f"cuda:{local_rank % count}"


def backend(device: str) -> str:
    """What torch.distributed talks through between processes on `device`: tensors of the host never go by NCCL."""
    return "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"


def num_threads(config: Config) -> int:
    """The share that one of this machine's processes has in its cores."""
    if "SLURM_CPUS_PER_TASK" in os.environ and config.launch.name == "env":
        return num_cores()  # Slurm has bound the process to its own
    started = config.launch.processes * len(config.trained_groups) if config.launch.name == "local" else 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if config.launch.name == "env" else started
    return max(1, num_cores() // here)


def with_threads(config: Config) -> Config:
    """The configuration with this process's share of the cores in place of `task.threads=null`."""
    if not isinstance(config.task, ImageNetConfig) or config.task.threads is not None:
        return config
    return replace(config, task=replace(config.task, threads=num_threads(config)))


def placed(config: Config, local_rank: int = 0) -> Config:
    """The configuration as a process of this machine computes it: on the device that `choose` gives it."""
    return on_device(config, choose(config, local_rank))


def on_device(config: Config, device: str) -> Config:
    """The configuration of a run whose models shall compute on `device`, wherever they were trained."""
    return replace(config, launch=replace(config.launch, device=device))
