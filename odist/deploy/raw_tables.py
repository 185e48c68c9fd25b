"""Rows of any table: prepared as the run's data were, into a folder that is removed again, and predicted in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from odist.data.store import read_record
from odist.engine.prediction import predict_in_turn
from odist.engine.problem import build_task
from odist.measure.churn import Form
from odist.measure.prediction_writer import probability_columns
from odist.prepare.table.options import TableOptions
from odist.prepare.table.prepare import prepare_table
from odist.tasks.criteo import CriteoTask

if TYPE_CHECKING:
    from odist.deploy.predict import Reading


def is_table(reading: Reading) -> bool:
    """Whether the run has learnt from a store of `odist prepare table`."""
    return "schema" in (read_record(reading.store) or {})


def predicted(reading: Reading, models: Sequence[nn.Module]) -> Iterator[dict[str, np.ndarray]]:
    """A row for each row of the table, or for each of its labels, with the columns that name it; a batch at once."""
    folder = reading.work / "rows"
    options = TableOptions(bad_rows="refuse" if reading.refuse else "skip")
    report = prepare_table(
        reading.inputs, output=folder, like=reading.store, options=options, progress=reading.progress, stop=reading.stop
    )
    reading.bad.counts.update(report.bad_rows)
    reading.bad.located.extend(report.bad_locations)
    config = replace(reading.config, data=replace(reading.config.data, path=str(folder)))
    task = build_task(config)
    order = task.evaluation_order("validation", rows=None, batch_size=config.train.evaluate_batch)
    for stream in range(len(order.streams)):
        batches = predict_in_turn(task, models, order, stream, split="validation", device=config.launch.device)
        for step, (mean, batch) in enumerate(batches):
            labels = batch.targets.flatten().cpu().numpy().astype(np.int64)
            yield {
                **cast(CriteoTask, task).row_columns("validation", ids=order.part(stream, step)),
                **({"label": labels} if report.label_rates is not None else {}),
                **probability_columns(mean, form=Form.binary),
            }
            reading.poll()
