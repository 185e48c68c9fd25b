"""`odist predict`: what a run predicts for raw rows, images or text, read by its own preparation, piece by piece."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from odist.config.read import load
from odist.config.schema import Config
from odist.deploy.members import load_members
from odist.engine.devices import available, on_device, require
from odist.engine.finished import fitted_fingerprint
from odist.engine.prediction import mean_probabilities
from odist.engine.problem import build_task, set_up_torch
from odist.errors import Interrupted, UserError
from odist.measure.churn import Form
from odist.measure.prediction_files import ROW
from odist.measure.prediction_writer import PredictionWriter, make_writable, probability_columns
from odist.prepare.job import ShowProgress, Stop
from odist.run.folder import FITTED, Run
from odist.tasks.base import Batch, Task

MOST_NAMED = 10  # bad rows that the report names


@dataclass
class Bad:
    """Rows of the input that cannot be read: how many by reason, and where the first few are."""

    counts: dict[str, int] = field(default_factory=dict)
    located: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str, *, detail: str = "") -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.located) < MOST_NAMED:
            self.located.append(f"{place}: {detail or reason}")


@dataclass(frozen=True)
class Examples:
    """Rows to predict at once. columns: what is said of each of them in the output, [n] each"""

    batch: Batch
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Reading:
    """What a reader of raw rows is given.

    store: the run's data, or what it has kept of them; refuse: stop at the first bad row
    """

    task: Task
    config: Config
    store: Path
    inputs: list[str]
    batch_rows: int
    bad: Bad
    refuse: bool
    work: Path
    progress: ShowProgress
    stop: Stop

    def poll(self) -> None:
        """Raise Interrupted if the prediction is to stop."""
        if self.stop():
            raise Interrupted("stopped; nothing was written.")


Reader = Callable[[Reading], Iterator[Examples]]


def predict(
    run: Run,
    inputs: list[str],
    *,
    output: Path,
    member: str | None = None,
    like: Path | None = None,
    refuse_bad: bool = False,
    device: str | None = None,
    progress: ShowProgress = lambda *_: None,
    stop: Stop = lambda: False,
) -> dict[str, Any]:
    """Predict raw rows and write them to a .csv or .parquet file; memory does not grow with their number.

    inputs: as of the task's `odist prepare`, labels not needed; images also in folders without classes
    member: see `odist.deploy.members.load_members`; like: the run's prepared data, where it has not kept their meaning
    refuse_bad: stop at the first row that cannot be read, instead of counting and leaving them out
    Returns what was read and written. Raises UserError for wrong input, and Interrupted; then nothing is written.
    """
    config = load(run.path / "config.yaml")
    if device is not None:
        require(device, asked=f"--device {device}", instead="--device cpu")
    config = on_device(config, device or (config.launch.device if available(config.launch.device) else "cpu"))
    set_up_torch(config)
    store = _store(run, config, like)
    config = replace(config, data=replace(config.data.whole(store), holdout="validation"))
    task = build_task(config)
    if task.fitted_fingerprint != fitted_fingerprint(run, config):
        raise UserError(
            f"--like {store}: was prepared with different vocabularies, classes or normalisation than the run's."
        )
    make_writable(output)
    members = load_members(run, config, task, member=member)
    began, bad, work = time.monotonic(), Bad(), Path(tempfile.mkdtemp(prefix="odist-predict-"))
    reading = Reading(task, config, store, inputs, config.train.evaluate_batch, bad, refuse_bad, work, progress, stop)
    rows = 0
    try:
        with PredictionWriter(output) as writer:
            for columns in _predicted(reading, members.models):
                count = len(next(iter(columns.values())))
                writer.write({ROW: np.arange(rows, rows + count), **columns})
                rows += count
            if not rows:
                raise UserError(
                    f"no row of the input can be read{_first(bad)}. Name files of the kind that the run has learnt from."
                )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - began
    return {
        "run": str(run.path),
        "member": members.name,
        "step": members.step,
        "output": str(output),
        "rows": rows,
        "bad_rows": bad.counts,
        "bad_located": bad.located,
        "device": config.launch.device,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 1),
    }


def _first(bad: Bad) -> str:
    return f" (the first: {bad.located[0]})" if bad.located else ""


def _store(run: Run, config: Config, like: Path | None) -> Path:
    """Where the meaning of a run's data is found."""
    if like is not None:
        return like
    kept = run.path / FITTED
    if kept.is_dir():
        return kept
    if config.data.path is None:
        raise UserError(
            f"{run.path}: has learnt from synthetic data, which have no raw rows. Train on data of `odist prepare`, or use "
            "`odist eval`."
        )
    if not Path(config.data.path).is_dir():
        raise UserError(
            f"{run.path}: was trained by an odist that kept no vocabularies, and its data are no longer at "
            f"{config.data.path}. Name them, or data prepared --like them: --like DIR."
        )
    return Path(config.data.path)


@torch.no_grad()
def _predicted(reading: Reading, models: Sequence[nn.Module]) -> Iterator[dict[str, np.ndarray]]:
    """The columns of the output, some rows at once."""
    from odist.deploy import raw_clicks, raw_images, raw_tables, raw_text

    task, device = reading.task, reading.config.launch.device
    name = reading.config.task.name
    if name == "lm":
        yield from raw_text.predicted(reading, models)
        return
    if name == "criteo" and raw_tables.is_table(reading):
        yield from raw_tables.predicted(reading, models)
        return
    readers: dict[str, Reader] = {"criteo": raw_clicks.examples, "imagenet": raw_images.examples}
    if name not in readers:
        raise UserError(f"task={name} has no reader of raw rows. Prepare them, and type odist eval RUN --data DIR.")
    for model in models:
        model.eval()
    for one in readers[name](reading):
        batch = one.batch.to(device)
        mean = mean_probabilities(task, [task.forward(model, batch, None)[0] for model in models], batch)
        form = Form.classes if mean.ndim == 2 else Form.binary
        yield {**one.columns, **probability_columns(mean, form=form)}
