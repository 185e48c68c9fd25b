"""Synchronous data parallelism by torch's DistributedDataParallel: gradients travel while backward still runs.

The sums are those of odist.strategies.allreduce up to rounding: their order, and with it the last bits, depends on the number
of processes. Embedding tables with sparse gradients and running statistics are summed beside it, see odist.sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_wrapper
from torch.nn.parallel import DistributedDataParallel

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies.allreduce import AllReduce
from odist.strategies.base import clones
from odist.sums import GroupSum
from odist.tasks.base import Batch


class DataParallel(AllReduce):
    """Sync-SGD inside a group of several processes, each of which sums the gradients of its own workers first.

    compress: whether gradients travel in bfloat16
    """

    def __init__(self, mesh: Mesh, *, compress: bool = False) -> None:
        super().__init__(mesh)
        self._compress = compress

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().prepare(model, optimizer)
        sparse = {id(module.weight) for module in model.modules() if getattr(module, "sparse", False)}
        self._tables = [parameter for parameter in self.parameters if id(parameter) in sparse]
        self._sums = GroupSum(self.mesh, [*self._tables, *self.buffers])
        beside = [name for name, parameter in model.named_parameters() if id(parameter) in sparse]
        beside += [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, beside)
        self._spread = DistributedDataParallel(
            model, process_group=self.mesh.process_group, gradient_as_bucket_view=True
        )
        if self._compress:
            compressed = bf16_compress_wrapper(allreduce_hook)  # by its name torch refuses it where there is no NCCL
            self._spread.register_comm_hook(self.mesh.process_group, lambda group, bucket: compressed(group, bucket))

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        # DistributedDataParallel takes the mean over the processes, and the sum is wanted.
        return [total / self.mesh.replica.size for total in super().count(batches)]

    @contextmanager
    def worker(self, worker: int) -> Iterator[nn.Module | None]:
        workers = self.mesh.local_workers
        self._begin(worker)
        if worker == workers.start:
            self.optimizer.zero_grad()
        last = worker == workers[-1]
        with nullcontext() if last else self._spread.no_sync():
            yield self._spread
        tables: list[Tensor | None] = [table.grad if last else None for table in self._tables]
        self._sums.add([*tables, *clones(self.buffers)])

    def step(self, step: int) -> None:
        if self._tables or self.buffers:
            sums = self._sums.total()
            for table, total in zip(self._tables, sums, strict=False):
                table.grad = None if total is None else total / self.mesh.replica.size
            self._keep_mean(sums[len(self._tables) :])
        self.optimizer.update(step)
