"""Finished runs: their models, as teachers, as first weights and to be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from odist.config.read import load
from odist.config.schema import Config
from odist.engine import checkpoint
from odist.engine.devices import on_device
from odist.engine.problem import build_model, build_task
from odist.errors import UserError
from odist.run.folder import FITTED, Run
from odist.tasks.base import Task
from odist.teachers import WEIGHTS, peers_options


def fitted_fingerprint(run: Run, config: Config) -> str:
    """Names what gave ids, numbers and classes their meaning in a run; its data may be gone."""
    known: str | None = run.env.get("fitted_fingerprint")
    return known or build_task(config).fitted_fingerprint


def task_of(run: Run, config: Config) -> Task:
    """The task of a run to use its models with, without rows where the run has kept what its data mean."""
    kept = run.path / FITTED
    if not kept.is_dir():
        return build_task(config)
    return build_task(replace(config, data=replace(config.data.whole(kept), holdout="validation")))


def load_teachers(paths: Sequence[str], config: Config, task: Task) -> list[nn.Module]:
    """Models of finished runs: all groups of an ensemble, group 0 of a codistilled run; of a file of weights, this run's.

    They may have learnt from other rows, of another day, if ids, numbers and classes meant the same there.
    """
    models = []
    for path in paths:
        if path.endswith(WEIGHTS):
            models.append(_model_of_file(path, config, task))
            continue
        run = Run.open_finished(path, key="teacher")
        other = on_device(load(run.path / "config.yaml"), config.launch.device)
        theirs = fitted_fingerprint(run, other)
        if theirs != task.fitted_fingerprint:
            cure = (
                f"Prepare this run's data with --like {other.data.path}"
                if other.data.path
                else "Train a teacher on the same data"
            )
            raise UserError(
                f"{path}: for this teacher, ids, numbers or classes mean something else than in this run's data (fitted parts "
                f"{theirs[:16]} there, {task.fitted_fingerprint[:16]} here). {cure}."
            )
        prepared = config.data.name == other.data.name == "prepared"  # its own store is not needed, and may be gone
        models += load_models(run, other, build_task(replace(other, data=config.data) if prepared else other))[0]
    return models


def _model_of_file(path: str, config: Config, task: Task) -> nn.Module:
    """This run's model with the weights of a safetensors file, such as `odist export` writes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = build_model(config, task, group=0)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).replace("\n", " ")[:300]
        raise UserError(
            f"algorithm.teachers: {path} does not hold the weights of this run's model={config.model.name}: {reason}"
        ) from error
    return model


def load_first_weights(path: str, config: Config, model: nn.Module, *, group: int) -> None:
    """Start a group from the weights that predict for a finished run: its group of the same number, else its group 0.

    Raises UserError if the run is not finished or its model is another one.
    """
    run = Run.open_finished(path, key="train.init_from")
    theirs = load(run.path / "config.yaml")
    source = group if theirs.num_groups == config.num_groups else 0
    steps = run.checkpoint_steps(source)
    if not steps:
        raise UserError(f"train.init_from={path}: its group {source} has no checkpoint any more.")
    try:
        checkpoint.load_weights(run, source, step=steps[-1], model=model, averaged=theirs.train.average != "none")
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from error


def load_models(run: Run, config: Config, task: Task) -> tuple[list[nn.Module], int]:
    """The models that predict for a run (one, or all of an ensemble) and the step of their newest checkpoint."""
    missing = run.missing_groups
    sound = [group for group in range(config.num_groups) if group not in missing]
    groups = sound if predictor(config) == "mean" else sound[:1]
    step = checkpoint.common_step(run, groups)
    if step is None and run.finished:
        raise UserError(
            f"{run.path}: finished, but its checkpoints were deleted, as `odist reproduce` does without --keep-checkpoints. "
            "Its predictions are there (odist churn, odist show); `odist train` in another run.dir trains it again."
        )
    if step is None:
        raise UserError(f"{run.path}: no checkpoint yet (state {run.status.get('state')}). `odist train` makes one.")
    models = []
    for group in groups:
        model = build_model(config, task, group=group)
        checkpoint.load_weights(run, group, step=step, model=model, averaged=config.train.average != "none")
        models.append(model)
    return models, step


def predictor(config: Config, *, missing: Sequence[int] = ()) -> str:
    """Which of a run's groups predicts: group 0, fixed in advance, or the mean of an ensemble.

    missing: groups that the run has lost; then the first sound one predicts, or the mean of the sound ones
    Source: Anil et al. 2018, section 3.5 (one copy of a codistilled pair predicts).
    """
    if config.num_groups > 1 and peers_options(config) is None:
        return "mean"
    return f"group-{min(group for group in range(config.num_groups) if group not in missing)}"
