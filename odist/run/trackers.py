"""Experiment trackers as sinks of a run: TensorBoard, Weights & Biases, MLflow. See `odist.run.sinks.Sink`."""

from __future__ import annotations

import logging
import os
from typing import Any

from odist.config.identity import flatten
from odist.files import alone
from odist.run.folder import Run

AXES = ("step", "examples")
NOT_SERIES = ("kind", "group", "time", "step")


def series(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by name: `train/label_loss`, `evaluate/auc`."""
    return {
        f"{row['kind']}/{key}": value
        for key, value in row.items()
        if key not in NOT_SERIES and isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoard:
    """`tensorboard/` in the run folder: a run per axis and group, as in step/group-0 and examples/group-0.

    Each group's run by steps carries the configuration as hyper-parameters from its first evaluation on.
    """

    requires = "tensorboard"

    def __init__(self, run: Run) -> None:
        self.root = run.path / "tensorboard"
        self.config = run.config
        self.writers: dict[tuple[str, int], Any] = {}
        self.described: set[int] = set()

    def write(self, row: dict[str, Any]) -> None:
        values = series(row)
        for axis in AXES:
            writer = self._writer(axis, row["group"])
            for name, value in values.items():
                if name.rpartition("/")[2] != axis:
                    writer.add_scalar(name, value, global_step=row[axis], walltime=row["time"])
        if row["kind"] == "evaluate" and row["group"] not in self.described:
            self.described.add(row["group"])
            self._describe(self._writer("step", row["group"]), values)

    def _writer(self, axis: str, group: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if (axis, group) not in self.writers:
            self.writers[axis, group] = SummaryWriter(str(self.root / axis / f"group-{group}"))
        return self.writers[axis, group]

    def _describe(self, writer: Any, metrics: dict[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(self.config)
        }
        for summary in hparams(settings, metrics):  # SummaryWriter.add_hparams would open one more run
            writer.file_writer.add_summary(summary)

    def flush(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def close(self, *, finished: bool) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb:
    """One W&B run, in `wandb/` of the run folder; a series per group, as in train/label_loss/group-0.

    Respects WANDB_MODE, WANDB_PROJECT and the like; without a login it records offline (`wandb sync DIR` uploads).
    """

    requires = "wandb"

    def __init__(self, run: Run) -> None:
        import wandb

        offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False)
        self.tracked: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "odist"),
            dir=str(run.path),
            id=run.env.get("run_id"),
            name=run.name,
            config=run.config,
            resume="allow" if not offline else None,
            mode="offline" if offline else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
        for kind in ("train", "evaluate"):
            self.tracked.define_metric(f"{kind}/*", step_metric="step")

    def write(self, row: dict[str, Any]) -> None:
        values = {f"{name}/group-{row['group']}": value for name, value in series(row).items()}
        self.tracked.log({"step": row["step"], "examples": row["examples"], **values})

    def flush(self) -> None:
        pass  # wandb writes in a process of its own

    def close(self, *, finished: bool) -> None:
        self.tracked.finish(exit_code=0 if finished else 1)


class MLflow:
    """One MLflow run; a series per group, as in train/label_loss/group-0, by steps, with examples as a series.

    Goes to MLFLOW_TRACKING_URI, otherwise to `mlflow.db` beside the run folder
    (`mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows it).
    """

    requires = "mlflow"

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its report on usage goes to nobody unasked
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every table that it makes
        beside = f"sqlite:///{run.path.parent.absolute() / 'mlflow.db'}"
        self.waiting: list[Any] = []
        with alone(run.path.parent):  # the first to come makes the tables, which two cannot
            self.client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or beside)
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "odist"))
        name = run.env.get("run_id", run.name)
        known = self.client.search_runs([experiment], filter_string=f"tags.odist_run_id = '{name}'", max_results=1)
        if known:
            self.id = known[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        made = self.client.create_run(experiment, run_name=run.name, tags={"odist_run_id": name})
        self.id = made.info.run_id
        settings = [Param(key, str(value)) for key, value in flatten(run.config)]
        for first in range(0, len(settings), 100):  # as many as one request may hold
            self.client.log_batch(self.id, params=settings[first : first + 100])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException:  # another one was first, on a server
            known = self.client.get_experiment_by_name(name)
            if known is None:
                raise
            return str(known.experiment_id)

    def write(self, row: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        when = round(1000 * row["time"])
        for name, value in series(row).items():
            self.waiting.append(Metric(f"{name}/group-{row['group']}", float(value), when, row["step"]))

    def flush(self) -> None:
        while self.waiting:
            self.client.log_batch(self.id, metrics=self.waiting[:1000])
            self.waiting = self.waiting[1000:]

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")
