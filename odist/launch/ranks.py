"""Which of a job's processes this one is, as torchrun, Kubernetes or Slurm says in the environment.

The names are torch's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or those of a step that srun has started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from odist.config.schema import Config
from odist.errors import UserError

PORT = 29500  # torch's own default


@dataclass(frozen=True)
class Ranks:
    """The place of this process in a job.

    rank, size: among all processes of the job; local_rank: among those of its machine
    address, port: where rank 0 listens; one_machine: whether all processes are on it
    attempt: how often the engine has started the job's processes again
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = PORT
    one_machine: bool = True
    attempt: int = 0


def find_ranks(variables: Mapping[str, str]) -> Ranks | None:
    """What the environment `variables` say; None if no engine has started this process.

    Raises UserError for numbers that cannot be, and for an address that is missing.
    """
    torch_names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # SLURM_PROCID alone is also in the environment of a batch script, which is no process of a step.
    slurm_names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    names = next((names for names in (torch_names, slurm_names) if all(name in variables for name in names[:2])), None)
    if names is None:
        return None
    rank, size, local_rank = _number(variables, names[0]), _number(variables, names[1]), _number(variables, names[2])
    if rank >= size:
        raise UserError(
            f"{names[0]}={rank} with {names[1]}={size}: ranks are counted from 0 to one less than their number."
        )
    if names is torch_names:
        one_machine = _number(variables, "LOCAL_WORLD_SIZE") == size
    else:
        one_machine = _number(variables, "SLURM_STEP_NUM_NODES", default=1) == 1
    address = variables.get("MASTER_ADDR", "127.0.0.1" if one_machine else "")
    if not address:
        raise UserError(
            f"{names[1]}={size}, and MASTER_ADDR is not set: the processes do not know where rank 0 is. With Slurm put "
            "`export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)` before srun."
        )
    port = _number(variables, "MASTER_PORT", default=PORT)
    if port == 0 and size > 1:
        raise UserError("MASTER_PORT=0: nobody listens there. On one machine start torchrun with --standalone.")
    attempt = _number(variables, "TORCHELASTIC_RESTART_COUNT")
    return Ranks(rank, size, local_rank, address, port, one_machine=one_machine, attempt=attempt)


def _number(variables: Mapping[str, str], name: str, *, default: int = 0) -> int:
    text = variables.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment: expected a whole number, as torchrun or srun sets it.")
    return int(text)


def lay_out(config: Config, ranks: Ranks) -> None:
    """Set `launch.processes` to the processes that each group gets. Raises UserError if they cannot be shared out."""
    num_groups, typed = len(config.trained_groups), config.launch.processes
    each, rest = divmod(ranks.size, num_groups)
    if rest or each == 0:
        raise UserError(
            f"WORLD_SIZE={ranks.size} processes for num_groups={num_groups}: every group needs the same number of them. "
            f"Start {num_groups}, {2 * num_groups} ... in all, or one job for each group with launch.group=K."
        )
    if typed not in (1, each):
        raise UserError(
            f"launch.processes={typed}: torchrun or srun has started {ranks.size} processes, which are {each} for each of "
            f"{num_groups} groups. Leave launch.processes out, or start {typed * num_groups}."
        )
    config.launch.processes = each
