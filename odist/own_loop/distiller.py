"""A teacher from anything in a training loop of one's own: a model, a function, a file of weights or of predictions.

teacher = odist.Distiller("yesterday.parquet", key="impression_id", predicts="binary")
loss = criterion(logits, y) + teacher.loss(logits, x, rows=impression_ids)
teacher.step()
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from odist.errors import UserError
from odist.mesh import Mesh
from odist.own_loop.taught import Taught, TeachingOptions, calling, checked
from odist.teachers import WEIGHTS, is_predictions
from odist.teachers.fixed import Fixed
from odist.teachers.recorded import Recorded

Source = nn.Module | Callable[..., Tensor] | str | Path


class _Called(nn.Module):
    """A function in the place of a model."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.function(*inputs, **named)


class Distiller(Taught):
    """Teachers that do not change: a released model, several, or what they have predicted.

    teachers: each a model (of which a frozen copy is made), a function of the inputs, a .safetensors file of the weights of
        what `build` makes, or a .parquet or .csv file of probabilities by row, as `odist eval --output` writes; their
        predictions are averaged
    build: makes the model of a .safetensors file
    key, column: of files of predictions: what names the row, and the probabilities where that does not go without saying
    teaching: burn_in, ramp, weight, predicts, loss, average, temperature, teacher_precision and forward, as
        `odist.own_loop.taught.TeachingOptions` says

    With a file of predictions `loss` wants `rows`, the key of each row of the batch; they are read into memory.
    Source: Anil et al. 2018, section 3.4.1 (two-phase distillation).
    """

    def __init__(
        self,
        *teachers: Source,
        build: Callable[[], nn.Module] | None = None,
        key: str = "row",
        column: Sequence[str] = (),
        **teaching: Unpack[TeachingOptions],
    ) -> None:
        if not teachers:
            raise UserError("name at least one teacher: a model, a function or a file.")
        files = [one for one in teachers if isinstance(one, str | Path) and is_predictions(str(one))]
        if files and teaching.get("predicts") == "values":
            raise UserError("predicts='values' with a file of predictions: such a file holds probabilities.")
        models = [_model(one, build) for one in teachers if not any(one is file for file in files)]
        options = checked(teaching, *models)
        self._keys: np.ndarray | None = None
        fixed = Fixed(
            calling(options["forward"]),
            models=models,
            recorded=[Recorded.read(file, key=key, column=tuple(column)) for file in files],
            rows=self._rows,
            burn_in=options["burn_in"],
            ramp=options["ramp"],
            batches=lambda step: [],
            lookahead=1,
            num_steps=0,
            mesh=Mesh(),
            precision=options["teacher_precision"],
        )
        super().__init__(fixed, options)

    def loss(self, outputs: Tensor, *inputs: Any, rows: Any = None, **options: Any) -> Tensor:
        """The teachers' loss on a batch; see `Taught.loss`. rows: keys of the batch's rows, [batch], for files of predictions"""
        self._keys = rows.cpu().numpy() if isinstance(rows, Tensor) else None if rows is None else np.asarray(rows)
        return super().loss(outputs, *inputs, **options)

    def _rows(self, step: int, worker: int) -> np.ndarray:
        if self._keys is None:
            raise UserError(
                "a file of predictions teaches: give loss(..., rows=keys), the key of each row of the batch."
            )
        return self._keys


def _model(source: Source, build: Callable[[], nn.Module] | None) -> nn.Module:
    if isinstance(source, nn.Module):
        return copy.deepcopy(source)
    if not isinstance(source, str | Path):
        return _Called(source)
    if not str(source).endswith(WEIGHTS):
        raise UserError(
            f"{source}: a teacher is a model, a function, a {WEIGHTS} file with build=, or a .parquet file of predictions. Of a "
            "run: odist export RUN --format safetensors."
        )
    if build is None:
        raise UserError(f"{source}: say with build=lambda: Net() which model has these weights.")
    from safetensors.torch import load_file

    model = build()
    try:
        model.load_state_dict(load_file(source))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{source}: not the weights of what build makes: {error}") from error
    return model
