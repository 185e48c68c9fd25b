"""What models predict for the rows of a split, each batch in one of a group's processes; the writer puts them together.

An evaluation consists of streams of batches that do not depend on each other (`EvaluationOrder.streams`). They depend on
the data and the batch size alone, and what comes of them is put together in their order, so that the numbers have the
same bits for any number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from odist.data.loader import Loader
from odist.data.order import EvaluationOrder
from odist.mesh import Mesh
from odist.tasks.base import Batch, Carry, Task

PREFETCH = 1  # batches prepared ahead
KEPT = "kept predictions"  # their name beside the sums of metrics

Arrays = dict[str, np.ndarray]
Summary = Callable[[Tensor, Batch], Arrays]  # logits and their batch -> what is kept of them


@torch.no_grad()
def predict_stream(
    task: Task, model: nn.Module, order: EvaluationOrder, stream: int, *, split: str, device: str
) -> Generator[tuple[Tensor, Batch]]:
    """Predict one stream of a split in eval mode, batch by batch: (logits, batch)."""
    model.eval()
    carry: Carry = None
    loader = Loader(
        lambda step: task.batch(order.part(stream, step), split).staged(device),
        num_steps=order.streams[stream],
        prefetch=PREFETCH if order.streams[stream] > 1 else 0,
    )
    try:
        for step in range(order.streams[stream]):
            batch = loader[step].to(device)
            logits, carry = task.forward(model, batch, carry)
            yield logits, batch
    finally:
        loader.close()


def predict_in_turn(
    task: Task, models: Sequence[nn.Module], order: EvaluationOrder, stream: int, *, split: str, device: str
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Predict one stream of a split by several models at once: (mean probabilities as in `SplitPrediction`, batch).

    No more than a batch of each model is in memory.
    """
    passes = [predict_stream(task, model, order, stream, split=split, device=device) for model in models]
    with contextlib.ExitStack() as stack:
        for one in passes:
            stack.callback(one.close)
        for found in zip(*passes, strict=True):
            yield mean_probabilities(task, [logits for logits, _ in found], found[0][1]), found[0][1]


def predict_spread(
    task: Task, model: nn.Module, order: EvaluationOrder, summary: Summary, *, split: str, device: str, mesh: Mesh
) -> Iterator[list[Arrays]]:
    """Predict a split by all processes of a group; in the writer, the summaries of every stream's batches, stream by stream.

    Every process has to go through it. Elsewhere than in the writer it yields nothing.
    """
    for first in range(0, len(order.streams), mesh.replica.size):
        own = first + mesh.replica.index
        kept: list[dict[str, Tensor]] = []
        if own < len(order.streams):
            passes = predict_stream(task, model, order, own, split=split, device=device)
            summaries = (summary(logits, batch) for logits, batch in passes)
            kept = [{name: torch.from_numpy(array) for name, array in one.items()} for one in summaries]
        for batches in mesh.gather_to_writer(kept):
            if batches:
                yield [{name: tensor.numpy() for name, tensor in one.items()} for one in batches]


def by_step(streams: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Arrays of every stream's batches in the order of the steps, and within a step in that of the streams."""
    steps = range(max(len(batches) for batches in streams))
    return np.concatenate([batches[step] for step in steps for batches in streams if step < len(batches)])


def measure_spread(
    task: Task,
    model: nn.Module,
    order: EvaluationOrder,
    *,
    split: str,
    device: str,
    mesh: Mesh,
    keep: bool = False,
) -> tuple[dict[str, float], np.ndarray | None]:
    """Metrics of a model on a split, and with `keep` its probabilities, float32: in the writer; see `predict_spread`."""

    def summary(logits: Tensor, batch: Batch) -> Arrays:
        own = task.metrics()
        own.update(logits, batch.targets, batch.weights, bayes=batch.bayes)
        kept = {KEPT: probabilities(task, logits, batch)} if keep else {}
        return {**own.totals(), **kept}

    metrics = task.metrics()
    kept = []
    for batches in predict_spread(task, model, order, summary, split=split, device=device, mesh=mesh):
        kept.append([batch.pop(KEPT) for batch in batches if keep])
        for totals in batches:
            metrics.add(totals)
    return metrics.result(), by_step(kept) if keep and mesh.is_writer else None


@dataclass(frozen=True)
class SplitPrediction:
    """Mean probabilities of some models over a split, as `Task.probabilities` has them, and what is known of the rows.

    probabilities: float64 [n] or [n, classes]; targets: [n]; bayes: [n] or None
    """

    probabilities: np.ndarray
    targets: np.ndarray
    bayes: np.ndarray | None


def probabilities(task: Task, logits: Tensor, batch: Batch) -> np.ndarray:
    """What is stored of a prediction, float32."""
    return task.probabilities(logits.float(), batch).cpu().numpy().astype(np.float32)


def mean_probabilities(task: Task, each: Sequence[Tensor], batch: Batch) -> np.ndarray:
    """The mean of what several models predict for a batch, float64, as `predict_split` has it. each: logits of a model"""
    # Rounded to float32 as in the prediction files, so that both ways of averaging agree.
    total = np.sum([probabilities(task, logits, batch).astype(np.float64) for logits in each], axis=0)
    return np.asarray(total / len(each))


def predict_split(
    task: Task,
    models: Sequence[nn.Module],
    *,
    batch_size: int,
    device: str,
    split: str = "validation",
    mesh: Mesh | None = None,
) -> SplitPrediction | None:
    """Predict a whole split with the mean probability of `models` (one, or the members of an ensemble).

    mesh: of the processes that share the work; None: this one alone
    Returns None elsewhere than in the writer.
    """

    def summary(logits: Tensor, batch: Batch) -> Arrays:
        own = {"probabilities": probabilities(task, logits, batch), "targets": batch.targets.flatten().cpu().numpy()}
        return own if batch.bayes is None else {**own, "bayes": batch.bayes.flatten().cpu().numpy()}

    mesh = mesh or Mesh()
    order = task.evaluation_order(split, rows=None, batch_size=batch_size)
    totals: list[list[np.ndarray]] = []
    known: list[list[Arrays]] = []
    for place, model in enumerate(models):
        streams = predict_spread(task, model, order, summary, split=split, device=device, mesh=mesh)
        for stream, batches in enumerate(streams):
            # Rounded to float32 as in the prediction files, so that both ways of averaging agree.
            values = [batch.pop("probabilities").astype(np.float64) for batch in batches]
            if place == 0:
                totals.append(values)
                known.append(batches)
            else:
                for total, value in zip(totals[stream], values, strict=True):
                    total += value
    if not mesh.is_writer:
        return None
    rest = {name: by_step([[batch[name] for batch in batches] for batches in known]) for name in known[0][0]}
    return SplitPrediction(by_step(totals) / len(models), rest["targets"], rest.get("bayes"))
