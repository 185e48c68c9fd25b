"""Raw text: every document of the input, cut into the run's tokens and predicted one after the other, as an evaluation does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from odist.engine.prediction import predict_split
from odist.engine.problem import build_task
from odist.errors import UserError
from odist.measure.prediction_files import OF_LABEL
from odist.prepare.text.options import TextOptions
from odist.prepare.text.prepare import prepare_text
from odist.tasks.lm import LMTask, PreparedSource

if TYPE_CHECKING:
    from odist.deploy.predict import Reading

# Nothing is left out: what to predict is the user's business.
EVERYTHING = TextOptions(language="any", long_paragraph_words=0, boilerplate="off", duplicates="keep", processes=1)


def predicted(reading: Reading, models: Sequence[nn.Module]) -> Iterator[dict[str, np.ndarray]]:
    """A row a token: `document` and `position` in it, both from 0, the token itself as `label`, and its probability.

    As in an evaluation the model reads on from document to document, in as many lanes as train.evaluate_batch says;
    the first token of each lane, and fewer than there are lanes at the end, are not predicted.
    """
    folder = reading.work / "tokens"
    options = replace(EVERYTHING, damaged="refuse" if reading.refuse else "keep")
    report = prepare_text(
        reading.inputs, output=folder, like=reading.store, options=options, progress=reading.progress, stop=reading.stop
    )
    for reason, count in {**report.damage, **report.dropped}.items():
        reading.bad.counts[reason] = reading.bad.counts.get(reason, 0) + count
    reading.bad.located.extend(report.damage_located)
    config = replace(reading.config, data=replace(reading.config.data, path=str(folder)))
    task = build_task(config)
    assert isinstance(task, LMTask)
    assert isinstance(task.source, PreparedSource)
    if not task.num_rows("validation"):
        raise UserError(f"the input has fewer than the {task.unroll + 1} tokens of one sequence (task.unroll).")
    size = config.train.evaluate_batch
    prediction = predict_split(task, models, batch_size=size, device=config.launch.device)
    assert prediction is not None  # this process is alone
    order = task.evaluation_order("validation", rows=None, batch_size=size)
    probability, labels = order.by_lane(prediction.probabilities), order.by_lane(prediction.targets)
    starts = np.asarray(task.source.store.document_starts("validation"))
    for lane, start in enumerate(order.starts):
        places = start + 1 + np.arange(order.lane_length)
        document = np.searchsorted(starts, places, side="right") - 1
        yield {
            "document": document,
            "position": places - starts[document],
            "label": labels[lane].astype(np.int64),
            OF_LABEL: probability[lane],
        }
