"""Two-phase distillation: finished models teach, or what they have predicted; several of them are an ensemble teacher.

Source: Anil et al. 2018, section 3.4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from odist.losses import Soft
from odist.mesh import Mesh
from odist.tasks.base import Batch, Forward
from odist.teachers import FixedOptions, is_predictions
from odist.teachers.base import Batches, Panel, TeacherSetup, WithoutPeers, rising
from odist.teachers.kept import Kept
from odist.teachers.recorded import Recorded


class Fixed(WithoutPeers):
    """Frozen teachers from the first step after burn-in.

    models: the teachers; recorded: predictions of others, by row; rows: step, worker -> the rows of its batch
    burn_in: steps before they are heard; ramp: steps over which their weight then rises
    others: see `Panel`
    """

    @classmethod
    def of(cls, options: FixedOptions, setup: TeacherSetup) -> Fixed:
        files = [path for path in options.teachers if is_predictions(path)]
        return cls(
            setup.task.forward,
            models=setup.load_models([path for path in options.teachers if path not in files]),
            recorded=[Recorded.read(path, rows_are=setup.training_rows) for path in files],
            rows=setup.rows,
            burn_in=setup.clock.steps(options.burn_in),
            ramp=setup.clock.steps(options.ramp),
            batches=setup.batches,
            lookahead=options.lookahead,
            num_steps=setup.clock.num_steps,
            mesh=setup.mesh,
            precision=options.teacher_precision,
            kept=Kept.of(options, setup.task),
        )

    def __init__(
        self,
        forward: Forward,
        *,
        models: Sequence[nn.Module],
        recorded: Sequence[Recorded] = (),
        rows: Callable[[int, int], np.ndarray] | None = None,
        burn_in: int,
        ramp: int = 0,
        batches: Batches,
        lookahead: int,
        num_steps: int,
        mesh: Mesh,
        precision: str = "auto",
        kept: Kept | None = None,
    ) -> None:
        self.panel = Panel(
            forward,
            batches=batches,
            lookahead=lookahead,
            num_steps=num_steps,
            mesh=mesh,
            precision=precision,
            kept=kept,
        )
        self.lookahead = lookahead
        self.burn_in = burn_in
        self.ramp = ramp
        self.recorded = list(recorded)
        self.rows = rows
        for number, model in enumerate(models):
            self.panel.place(number, model, step=burn_in)

    def forwards(self, step: int) -> int:
        return 0 if step < self.burn_in else len(self.panel.models)

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        if step < self.burn_in:
            return None
        soft = self.panel.predict(step, worker, batch)
        if self.recorded:
            assert self.rows is not None
            keys = self.rows(step, worker)
            written = [one.logits(keys, device=logits.device).reshape(logits.shape) for one in self.recorded]
            if self.panel.kept is not None:
                written = [self.panel.kept(values) for values in written]
            soft = Soft((*(() if soft is None else soft.values), *written))
        return rising(soft, step=step, burn_in=self.burn_in, ramp=self.ramp)

    def state_dict(self) -> dict[str, Any]:
        return {"panel": self.panel.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.panel.load_state_dict(state["panel"])
