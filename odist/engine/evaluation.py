"""What a run predicts: evaluation of its newest checkpoint, on its own data or on another store, and of kept means."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from odist.config.read import load
from odist.config.schema import Config
from odist.engine.devices import available, on_device, require
from odist.engine.finished import fitted_fingerprint, load_models, predictor
from odist.engine.prediction import predict_split
from odist.engine.problem import build_task, set_up_torch
from odist.errors import UserError
from odist.measure.churn import form_of
from odist.measure.prediction_files import data_fingerprint
from odist.measure.prediction_writer import PredictionWriter, frame_of
from odist.run.folder import Run
from odist.run.log import MetricsLog, Silent
from odist.run.predictions import LAST_WEIGHTS, LAST_WEIGHTS_FILE, Predictions
from odist.tasks.base import Task


def evaluate(
    run: Run, *, split: str, data: Path | None = None, output: Path | None = None, device: str | None = None
) -> dict[str, Any]:
    """Evaluate a run's newest checkpoint.

    split: "validation" or "train"; data: another store, made with the same fitted parts (`--like`)
    output: write the predictions there (.csv or .parquet); see `odist.measure.prediction_files`
    device: where to compute; None: where the run was trained if this machine has it, else the CPU
    Returns the results with intervals, for unlabelled rows only their number. Raises UserError if the
    store is made otherwise, or this machine has no such device.
    """
    config = load(run.path / "config.yaml")
    if device is not None:
        require(device, asked=f"--device {device}", instead="--device cpu")
    elif available(config.launch.device):
        device = config.launch.device
    config = on_device(config, device or "cpu")
    set_up_torch(config)
    if data is None:
        task = build_task(config)
    else:
        task = build_task(replace(config, data=config.data.whole(data)))
        if task.fitted_fingerprint != fitted_fingerprint(run, config):
            raise UserError(
                f"--data {data}: was prepared with different vocabularies, classes or normalisation than the run's data. "
                f"Prepare it again with --like {config.data.path or 'STORE'}."
            )
    models, step = load_models(run, config, task)
    if task.num_rows(split) == 0:
        raise UserError(f"--split {split}: this part of the data is empty; choose the other of train, validation.")
    prediction = predict_split(
        task, models, split=split, batch_size=config.train.evaluate_batch, device=config.launch.device
    )
    assert prediction is not None  # this process is alone
    labelled = bool((prediction.targets >= 0).all())
    if not labelled and output is None:
        raise UserError(
            f"--data {data}: these rows have no labels, so there is nothing to measure. Add --output FILE.csv to write "
            "the predictions."
        )
    results: dict[str, Any] = {"rows": len(prediction.targets)}
    if labelled:
        results = task.results(prediction.probabilities, prediction.targets, bayes=prediction.bayes, split=split)
    if output is not None:
        frame = frame_of(
            prediction.probabilities,
            targets=prediction.targets,
            form=form_of(prediction.probabilities, prediction.targets),
            fingerprint=data_fingerprint(split, task.fingerprint),
            names=row_columns(task, split),
            first_row=config.data.first_row if split == "train" and data is None else 0,
        )
        with PredictionWriter(output) as writer:
            writer.write(frame)
    missing = run.missing_groups
    known = {"run": str(run.path), "split": split, "step": step, "predictor": predictor(config, missing=missing)}
    lost = {"missing_groups": missing} if missing else {}
    return {**known, "device": config.launch.device, **lost, **results}


def row_columns(task: Task, split: str) -> dict[str, np.ndarray]:
    """Columns that name the entries of a split's predictions; a task may say which, by a method of this name."""
    named = getattr(task, "row_columns", None)
    return {} if named is None else dict(named(split))


def log_mean_evaluations(run: Run, config: Config) -> None:
    """Add to metrics.jsonl how good the mean prediction was at each evaluation that was kept, as group -1."""
    sound = [group for group in range(config.num_groups) if group not in run.missing_groups]
    roots = [run.evaluation_root(group) for group in sound]
    averaged = config.train.average != "none"
    kept = set.intersection(*({path.name for path in root.glob("*.npy")} for root in roots))
    names = sorted(name for name in kept if not name.endswith(LAST_WEIGHTS_FILE))
    if names:
        task, whole = build_task(config), run.predictions("validation")
        rows = run.metrics(kind="evaluate")
        with contextlib.closing(MetricsLog(run, progress=Silent())) as log:
            for name in names:
                step = int(Path(name).stem.removeprefix("step-"))
                own = rows[rows["step"] == step]
                numbers = _mean_results(task, [root / name for root in roots], whole)
                last = [root / f"{Path(name).stem}{LAST_WEIGHTS_FILE}" for root in roots]
                if averaged:
                    numbers |= {
                        f"{LAST_WEIGHTS}{key}": value for key, value in _mean_results(task, last, whole).items()
                    }
                log.write(
                    "evaluate",
                    group=-1,
                    step=step,
                    examples=int(own["examples"].iloc[0]),
                    seconds=float(own["seconds"].max()),
                    split="validation",
                    **numbers,
                )
    shutil.rmtree(run.path / "evaluations", ignore_errors=True)


def _mean_results(task: Task, paths: Sequence[Path], whole: Predictions) -> dict[str, float]:
    """Metrics of the mean of kept predictions. whole: the run's, for the targets"""
    mean = np.mean([np.load(path, allow_pickle=False).astype(np.float64) for path in paths], axis=0)
    results = task.results(mean, whole.targets, bayes=whole.bayes, split="validation")
    return {key: value for key, value in results.items() if isinstance(value, float)}
