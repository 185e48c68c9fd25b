"""What trained groups leave: predictions and numbers of each, and results.json over all of them.

A group's JSON file is the mark that it is done; results.json that the run is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from odist.config.read import load
from odist.config.schema import Config
from odist.engine import checkpoint
from odist.engine.evaluation import log_mean_evaluations
from odist.engine.finished import predictor
from odist.engine.prediction import SplitPrediction, measure_spread, predict_split
from odist.engine.problem import build_task, forward_flops
from odist.engine.trainer import CROSS_ENTROPIES, Trainer
from odist.errors import Damaged
from odist.files import save_array, write_atomically
from odist.launch.plan import bytes_sent, plan_of
from odist.measure.scores import constant_loss
from odist.run.damage import Kinds, read_array, read_json, writing
from odist.run.folder import CONTINUE, Run
from odist.run.predictions import LAST_WEIGHTS_FILE, Predictions
from odist.tasks.base import Task

Say = Callable[[str], None]
TRAINING = "training_"  # begins the names of metrics of training rows


def finish_group(trainer: Trainer, config: Config) -> None:
    """Write a trained group's predictions, and its results beside them as the mark that it is done.

    All processes of the group predict, one writes.
    """
    task, clock, group = trainer.task, trainer.clock, trainer.mesh.group.index
    root = trainer.run.prediction_root("validation")
    model = trainer.predicting(clock.num_steps)
    predicted = _predicted(trainer, model, config)
    of_last_weights = None if trainer.average is None else _predicted(trainer, trainer.model, config)
    if predicted is None:
        return
    prediction, results = predicted
    training = {"seconds": round(trainer.seconds, 3), "weight_hash": checkpoint.weight_hash(trainer.model)}
    own = {**results, **training, **trainer.teacher.summary()}
    arrays = {f"group-{group}.npy": prediction.probabilities.astype(np.float32), "targets.npy": prediction.targets}
    if prediction.bayes is not None:
        arrays["bayes.npy"] = prediction.bayes  # as the targets, every group's the same
    if of_last_weights is not None:
        last, last_results = of_last_weights
        own |= {"average_hash": checkpoint.weight_hash(model), "last_weights": last_results}
        arrays[f"group-{group}{LAST_WEIGHTS_FILE}"] = last.probabilities.astype(np.float32)
    length = {
        "rows": len(prediction.targets),
        "steps": clock.num_steps,
        "examples_per_model": clock.horizon,
        "flops": training_flops(trainer, forward_flops(config, task, trainer.model)),
        "bytes_sent": training_bytes(trainer, config),
    }
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            save_array(root / name, array)
        write_atomically(trainer.run.group_results(group), json.dumps({**own, "length": length}) + "\n")


def _predicted(
    trainer: Trainer, model: torch.nn.Module, config: Config
) -> tuple[SplitPrediction, dict[str, Any]] | None:
    """What a model predicts for the validation part, and its results; None elsewhere than in the writer."""
    size, mesh = config.train.evaluate_batch, trainer.mesh
    prediction = predict_split(trainer.task, [model], batch_size=size, device=trainer.device, mesh=mesh)
    on_training_rows = _on_training_rows(trainer, config, model)
    if prediction is None:
        return None
    probabilities, targets, bayes = prediction.probabilities, prediction.targets, prediction.bayes
    return prediction, trainer.task.results(probabilities, targets, bayes=bayes, split="validation") | on_training_rows


def _on_training_rows(trainer: Trainer, config: Config, model: torch.nn.Module) -> dict[str, Any]:
    """Metrics of the first `train.training_rows` training rows, not augmented: whether a model fits what it has learnt from."""
    if not config.train.training_rows:
        return {}
    rows, size = config.train.training_rows, config.train.evaluate_batch
    order = trainer.task.evaluation_order("train", rows=rows, batch_size=size)
    metrics, _ = measure_spread(trainer.task, model, order, split="train", device=trainer.device, mesh=trainer.mesh)
    return {f"{TRAINING}{name}": value for name, value in metrics.items()}


def _group_results(run: Run, group: int) -> dict[str, Any]:
    """What a trained group has left. Raises Damaged if it is not sound."""
    root = run.prediction_root("validation")
    kinds: Kinds = {"seconds": (int, float), "weight_hash": str, "length": dict}
    own = read_json(run.group_results(group), cure=CONTINUE, kinds=kinds, required=tuple(kinds))
    if "flops" not in own["length"]:
        raise Damaged(f"{run.group_results(group)}: written by an older version of odist. {CONTINUE}")
    for end in (".npy", *([LAST_WEIGHTS_FILE] if "last_weights" in own else [])):
        read_array(root / f"group-{group}{end}", cure=CONTINUE, rows=own["length"].get("rows"))
    return own


def is_done(run: Run, group: int, *, say: Say) -> bool:
    """Whether a group is trained and has left sound results; damaged ones are made again."""
    mark = run.group_results(group)
    try:
        if mark.exists():
            _group_results(run, group)
            return True
    except Damaged as error:
        say(f"{error} It is made again from the last checkpoint.")
    return False


def combine(run: Run, *, missing: Sequence[int] = ()) -> None:
    """Write results.json from what the groups left, then set the state `finished`.

    missing: groups that were lost; the results are then those of the others and say so, and the run is not finished
    """
    config = load(run.path / "config.yaml")
    task = build_task(config)
    sound = [group for group in config.trained_groups if group not in missing]
    absent = [group for group in range(config.num_groups) if group not in sound]
    groups = [_group_results(run, group) for group in sound]
    lengths = [group.pop("length") for group in groups]
    length = lengths[0]
    lost = {"missing_groups": absent} if absent else {}
    content = {
        "split": "validation",
        "rows": length["rows"],
        "predictor": predictor(config, missing=absent),
        "steps": length["steps"],
        "examples_per_model": length["examples_per_model"],
        "total_examples": length["examples_per_model"] * len(sound),
        "distinct_examples": task.distinct_rows(num_groups=len(sound), examples=length["examples_per_model"]),
        "flops": sum(each["flops"] for each in lengths),
        **({} if "bytes_sent" not in length else {"bytes_sent": length["bytes_sent"]}),
        **lost,
    }
    meta = {"predictor": content["predictor"], "num_groups": config.num_groups, "fingerprint": task.fingerprint, **lost}
    path = run.prediction_root("validation") / "meta.json"
    with writing(path):
        write_atomically(path, json.dumps(meta) + "\n")
    whole = run.predictions("validation")
    results = _results(task, whole)
    averaged, alone = config.train.average != "none", content["predictor"] != "mean"
    if alone:
        results |= _of_training_rows(groups[0])
    if averaged:
        content["last_weights"] = _results(task, run.predictions(last_weights=True))
        if alone:
            content["last_weights"] |= _of_training_rows(groups[0]["last_weights"])
    if alone and len(sound) > 1:
        content["mean_of_groups"] = _results(task, run.predictions(predictor="mean"))
        if averaged:
            last = run.predictions(last_weights=True, predictor="mean")
            content["mean_of_groups"]["last_weights"] = _results(task, last)
    if not alone and not missing:
        log_mean_evaluations(run, config)
    seconds = round(sum(group["seconds"] for group in groups), 3)
    content |= {
        "metrics": results,
        "groups": [groups[sound.index(group)] if group in sound else None for group in range(config.num_groups)],
        "seconds": seconds,
        **beside_a_constant(task, results, whole.targets),
    }
    run.write_json("results.json", content)
    if not missing:
        run.set_status(state="finished", step=content["steps"], num_steps=content["steps"], finished=time.time())


def _of_training_rows(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name.startswith(TRAINING)}


def _results(task: Task, predictions: Predictions) -> dict[str, Any]:
    """Metrics of predictions on the validation part."""
    return task.results(predictions.probabilities, predictions.targets, bayes=predictions.bayes, split="validation")


def beside_a_constant(task: Task, results: dict[str, Any], targets: np.ndarray) -> dict[str, Any]:
    """The loss of a constant prediction, and a remark if the run is not better.

    The constant is the rate of the positive class in the training rows; with several classes it is uniform.
    """
    name = task.main_metric
    if name not in CROSS_ENTROPIES or results.get(name) is None:
        return {}
    prior = task.prior().numpy()
    if prior.ndim == 0:
        same_for_all = np.full(len(targets), float(prior))
        constant = task.results(same_for_all, targets, bayes=None, split="validation")[name]
    else:
        constant = constant_loss(np.full(len(prior), 1 / len(prior)), targets)
    remarks = []
    if not results[name] < constant:
        same = f"{prior:.4f}, the rate of the training rows" if prior.ndim == 0 else f"1/{len(prior)} for every class"
        remarks.append(
            f"{name} {results[name]:.5f} is no better than a constant prediction: {same}, has {constant:.5f}. "
            "Try another optim.lr, or train longer."
        )
    return {"constant_prediction": {name: constant}, "remarks": remarks}


def training_flops(trainer: Trainer, forward: float) -> int:
    """Floating-point operations of a group's training, in forwards of one example, which have `forward` of them.

    Three an example, those of its teacher, and those of the average that it has published.
    """
    forwards = sum(3 + trainer.teacher.forwards(step) for step in range(trainer.clock.num_steps))
    averaged = 0 if trainer.average is None else trainer.average.num_forwards
    return round(forward * (forwards * trainer.clock.examples_per_step + averaged))


def training_bytes(trainer: Trainer, config: Config) -> int:
    """Bytes that each worker of a group sends in the whole training, were it a process of its own; see `odist plan`."""
    teacher, steps = trainer.teacher, range(1, trainer.clock.num_steps + 1)
    published = sum(map(teacher.due, steps))
    predictions = round(teacher.summary().get("exchange_bytes", 0) / config.workers)  # counted, of all its processes
    if config.workers == 1 and not published:
        return predictions
    trainer.model.eval()
    plan = plan_of(config, task=trainer.task, clock=trainer.clock, model=trainer.model, processes=config.workers)
    return bytes_sent(plan, published=published) + predictions
