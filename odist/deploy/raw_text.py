"""Raw text: every document of the input, cut into the run's tokens and predicted one after the other, as an evaluation does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from odist.engine.prediction import predict_in_turn
from odist.engine.problem import build_task
from odist.errors import UserError
from odist.measure.prediction_files import OF_LABEL
from odist.prepare.text.options import TextOptions
from odist.prepare.text.prepare import prepare_text
from odist.tasks.lm import LMTask, PreparedSource

if TYPE_CHECKING:
    from odist.deploy.predict import Reading

WRITTEN = 1 << 16  # tokens at once
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
    order = task.evaluation_order("validation", rows=None, batch_size=size)
    # Predicted step by step over all lanes, written lane by lane: a file holds what the other lanes have found.
    shape = (order.lanes, order.lane_length)
    probability = np.memmap(reading.work / "probability", dtype=np.float64, mode="w+", shape=shape)
    labels = np.memmap(reading.work / "labels", dtype=np.int64, mode="w+", shape=shape)
    lane = 0
    for stream in range(len(order.streams)):
        position, lanes = 0, 0
        batches = predict_in_turn(task, models, order, stream, split="validation", device=config.launch.device)
        for mean, batch in batches:
            lanes, tokens = batch.targets.shape
            place = (slice(lane, lane + lanes), slice(position, position + tokens))
            probability[place] = mean.reshape(lanes, tokens)
            labels[place] = batch.targets.cpu().numpy()
            position += tokens
            reading.poll()
        lane += lanes
    starts = task.source.store.document_starts("validation")
    for lane, first in itertools.product(range(order.lanes), range(0, order.lane_length, WRITTEN)):
        some = slice(first, min(first + WRITTEN, order.lane_length))
        places = int(order.starts[lane]) + 1 + np.arange(some.start, some.stop)
        document = np.searchsorted(starts, places, side="right") - 1
        yield {
            "document": document,
            "position": places - starts[document],
            "label": np.asarray(labels[lane, some]),
            OF_LABEL: np.asarray(probability[lane, some]),
        }
