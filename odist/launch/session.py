"""The groups that train in one process: made together with the log that they share, and closed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from odist.config.schema import Config
from odist.engine.trainer import Trainer
from odist.engine.wiring import Parts, build_trainer
from odist.launch.stop import AgreedStop
from odist.mesh import Mesh
from odist.optim import Clock
from odist.run.folder import Run
from odist.run.log import MetricsLog, Progress
from odist.tasks.base import Task


class Session:
    """Trainers that are ready for `fit(start)`; use it in a `with` block.

    meshes: one for each group that trains here
    stop: becomes true when the groups should save and end
    start: completed steps of the checkpoints that are loaded; 0 for none
    links: of a worker's process, see odist.engine.wiring.Parts
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        task: Task,
        *,
        clock: Clock,
        meshes: Sequence[Mesh],
        progress: Progress,
        stop: Callable[[], bool],
        start: int = 0,
        links: Sequence[object] = (),
    ) -> None:
        self.log = MetricsLog(run, progress=progress)
        self.parts = Parts(config, run, task, clock=clock, log=self.log, stop=stop, links=links)
        self.trainers: list[Trainer] = []
        agreed = AgreedStop(stop, meshes[0])
        try:
            for mesh in meshes:
                self.trainers.append(build_trainer(self.parts, mesh, stop=agreed, start=start))
                if start:
                    self.trainers[-1].load(start)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads of loaders and exchanges, and close the log."""
        for trainer in self.trainers:
            trainer.loader.close()
        self.parts.close()
