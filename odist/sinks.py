"""Trackers that follow a run: TensorBoard, Weights & Biases, MLflow; chosen by `run.sinks=[NAME,...]`.

A sink gets every row of metrics.jsonl from a thread that reads the file, so training neither waits for it
nor fails with it, and one process or many make no difference. Writing the rows is left to log.py. How far a
sink has come is kept in `sinks/` of the run folder: a continued run forwards what is new, so rows that are
written again after a checkpoint come twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from odist import registry
from odist.config import flatten
from odist.errors import UserError
from odist.run import Run, write_atomically
from odist.suggest import choose

SINKS = {
    "tensorboard": "odist.sinks:TensorBoard",
    "wandb": "odist.sinks:Wandb",
    "mlflow": "odist.sinks:MLflow",
}
SECONDS = 1.0  # between two looks into metrics.jsonl
SECONDS_TO_CLOSE = 60.0  # for all sinks at the end of a run, before it goes on without them
AXES = ("step", "examples")
NOT_SERIES = ("kind", "group", "time", "step")


class Sink(Protocol):
    """Takes rows of one run; made and called in a thread of its own, may raise anything.

    requires: package that must be importable
    """

    requires: str

    def __init__(self, run: Run) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self, *, finished: bool) -> None: ...


def check(names: Sequence[str]) -> None:
    """Refuse unknown sinks and those whose package is missing; UserError says what to type."""
    known = registry.names("sinks")
    for name in names:
        if name not in known:
            raise UserError(f"run.sinks=[{','.join(names)}]: {choose(name, list(known))}")
        package = registry.find("sinks", name).requires
        if importlib.util.find_spec(package) is None:
            install = f"odist[{name}]" if name in SINKS else package
            raise UserError(f"run.sinks=[{','.join(names)}]: {name} needs the package {package}, which is not "
                            f"installed: pip install '{install}'")  # fmt: skip


@contextlib.contextmanager
def forwarding(run: Run, names: Sequence[str]) -> Iterator[None]:
    """Forward the rows of a run to its sinks while inside; at the end wait until they have all."""
    threads = [Forwarder(run, name) for name in dict.fromkeys(names)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.ended.set()
        deadline = time.monotonic() + SECONDS_TO_CLOSE
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _warn(f"sink {thread.sink_name} did not end within {SECONDS_TO_CLOSE:.0f} s; left behind.")


class Forwarder(threading.Thread):
    """Reads metrics.jsonl as it grows and hands each new row to one sink, until `ended` is set."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(name=f"sink-{name}", daemon=True)
        self.folder = run
        self.sink_name = name
        self.ended = threading.Event()
        self.place_file = run.path / "sinks" / f"{name}.json"

    def run(self) -> None:
        try:
            self._forward()
        except Exception as error:  # whatever a tracker does, the run goes on
            text = (str(error) or type(error).__name__).splitlines()[0]
            _warn(f"sink {self.sink_name} is switched off: {type(error).__name__}: {text}")

    def _forward(self) -> None:
        sink: Sink = registry.find("sinks", self.sink_name)(self.folder)
        place = self._known_place()
        last = False
        while not last:
            last = self.ended.wait(SECONDS)
            rows, after = read_rows(self.folder, place)
            for row in rows:
                sink.write(row)
            if after > place:
                sink.flush()
                place = after
                write_atomically(self.place_file, json.dumps({"bytes": place}) + "\n")
        sink.close(finished=self.folder.finished)

    def _known_place(self) -> int:
        self.place_file.parent.mkdir(exist_ok=True)
        if not self.place_file.is_file():
            return 0
        return int(json.loads(self.place_file.read_text(encoding="utf-8"))["bytes"])


def read_rows(run: Run, place: int) -> tuple[list[dict[str, Any]], int]:
    """Whole rows of metrics.jsonl after byte `place`, and the place after them; torn lines are left out."""
    path = run.path / "metrics.jsonl"
    if not path.is_file():
        return [], place
    with open(path, "rb") as file:
        file.seek(place)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):  # half a line of a killed process
            rows.append(json.loads(line))
    return rows, place + len(whole)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that is inside for this folder, on file systems that have locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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

    WANDB_MODE, WANDB_PROJECT and the like hold; without a login it records offline (`wandb sync DIR` uploads).
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
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every table that it makes
        beside = f"sqlite:///{run.path.parent.absolute() / 'mlflow.db'}"
        self.waiting: list[Any] = []
        with _alone(run.path.parent):  # the first to come makes the tables, which two cannot
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
