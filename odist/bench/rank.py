"""One of the processes that share a group's gradients (`python -m odist.bench.rank FOLDER RANK SIZE`).

Every line of its input names an arm and a number of steps; the answer is the seconds of a step and the bytes that this
process sent in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from odist.bench.rounds import Arm

if TYPE_CHECKING:
    from torch import nn

COUNTERS = Path("/proc/self/io")


def sent() -> int:
    """Bytes that this process has written until now, to sockets and files alike; 0 where the system does not count."""
    if not COUNTERS.is_file():
        return 0
    counts = dict(line.split(": ") for line in COUNTERS.read_text(encoding="utf-8").splitlines())
    return int(counts["wchar"])


def make_arms(folder: Path, *, rank: int, size: int) -> list[Arm]:
    """The engine with each way to sum gradients, plain DDP, and the sums alone; torch.distributed is ready."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from odist.bench.criteo import hand_loop
    from odist.bench.engine import Engine, batches_of
    from odist.config.read import load
    from odist.engine.problem import build_task, set_up_torch
    from odist.mesh import Axis, Mesh
    from odist.sums import GroupSum

    replica = Axis(rank, size)
    arms = []
    for name in ("exact", "fast"):
        config = load(folder / f"{name}.yaml")
        set_up_torch(config)
        arms.append(Arm(name, Engine(folder / f"{name}-{rank}", config, replica=replica).train, 0))
    task = build_task(config)
    _, batches = batches_of(config, task, start=rank, steps=20)
    loop = hand_loop(config, task, batches, sparse=False)
    if size > 1:
        loop.model = DistributedDataParallel(loop.model)
    gradients = [torch.randn_like(parameter) for parameter in loop.model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    group_sum = GroupSum(Mesh(replica=replica, workers=size), gradients)

    def all_reduce(steps: int) -> None:
        for _ in range(steps):
            dist.all_reduce(flat)

    def tree(steps: int) -> None:
        for _ in range(steps):
            group_sum.add(list(gradients))
            group_sum.total()

    sums = [Arm("all_reduce", all_reduce, 0), Arm("tree", tree, 0)]
    return [*arms, Arm("ddp", loop.train, 0), *(sums if size > 1 else [])]


def serve(folder: Path, *, rank: int, size: int) -> None:
    """Do what the lines of the input say."""
    import torch.distributed as dist

    store = dist.FileStore(str(folder / "rendezvous"), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    arms = {arm.name: arm.run for arm in make_arms(folder, rank=rank, size=size)}
    print("ready", flush=True)
    for line in sys.stdin:
        name, steps = line.split()
        print("done", *measured(arms[name], int(steps)), flush=True)
    dist.destroy_process_group()


def measured(run: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Seconds and bytes sent of a step, all processes having begun together."""
    import torch.distributed as dist

    dist.barrier()
    before, began = sent(), time.perf_counter()
    run(steps)
    return (time.perf_counter() - began) / steps, (sent() - before) / steps


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's gradient in fp32."""
    return sum(4 * parameter.numel() for parameter in model.parameters())


def entry(arguments: Sequence[str]) -> None:
    """Serve with the arguments of the command line."""
    folder, rank, size = arguments
    serve(Path(folder), rank=int(rank), size=int(size))


if __name__ == "__main__":
    entry(sys.argv[1:])
