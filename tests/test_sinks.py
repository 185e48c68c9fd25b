"""Trackers: what reaches TensorBoard, W&B and MLflow is what metrics.jsonl says, and none can hurt a run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import compose, make_config, weight_hashes

from odist.errors import UserError
from odist.launch import launch
from odist.launch.stop import Stop
from odist.run import sinks
from odist.run.folder import Run

THEIRS = """
import json, os, threading

class Lines:
    requires = "json"
    def __init__(self, run):
        self.path = run.path / "lines"
    def write(self, row):
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\\n")
    def flush(self):
        pass
    def close(self, *, finished):
        with open(self.path, "a") as file:
            file.write(json.dumps({"finished": finished}) + "\\n")

class Raising(Lines):
    def write(self, row):
        raise OSError("the service\\nis gone")

class Hanging(Lines):
    def write(self, row):
        threading.Event().wait()

class Absent(Lines):
    requires = "no_such_package"
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks of another package: lines, raising, hanging, absent."""
    root = tmp_path / "site"
    (root / "their_sinks-1.0.dist-info").mkdir(parents=True)
    (root / "their_sinks.py").write_text(THEIRS)
    (root / "their_sinks-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
    points = "".join(f"{name.lower()} = their_sinks:{name}\n" for name in ("Lines", "Raising", "Hanging", "Absent"))
    (root / "their_sinks-1.0.dist-info" / "entry_points.txt").write_text(f"[odist.sinks]\n{points}")
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.delitem(sys.modules, "their_sinks", raising=False)


@pytest.fixture
def follow(tmp_path: Path) -> Callable[..., Run]:
    """Train a run that the named sinks follow: `follow("wandb", "algorithm=codistill")`."""

    def start(names: str, *overrides: str, name: str = "run") -> Run:
        given = compose("train.log_every=250", f"run.sinks=[{names}]", f"run.dir={tmp_path / name}", *overrides)
        return launch.train(launch.prepare_config(given), overrides=list(overrides), stop=Stop())

    return start


def expected(run: Run) -> dict[tuple[str, int], dict[int, float]]:
    """Number by step for every series of metrics.jsonl: (train/label_loss, group)."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key, value in row.items():
            if key not in ("group", "step", "time") and isinstance(value, int | float):
                found.setdefault((f"{row['kind']}/{key}", row["group"]), {})[row["step"]] = value
    assert len(found) > 10
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a log file of LevelDB, in which W&B keeps offline runs (after a header of 7 bytes).

    Ends before the first part that is not whole or whose checksum is wrong: its process may still be writing.
    """
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        if kind not in (1, 2, 3, 4) or len(part) < length or zlib.crc32(bytes([kind]) + part) != checksum:
            return
        record += part
        place += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield record
            record = b""


# The three trackers


@pytest.mark.parametrize("place", ["launch=inline", "launch=local"])
def test_tensorboard_shows_every_row_on_both_axes(place: str, follow: Callable[..., Run]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = follow("tensorboard", "algorithm=codistill", "exchange=store", place)
    wanted = expected(run)
    per_step = run.horizon["examples_per_step"]
    for axis, scale in (("step", 1), ("examples", per_step)):
        for group in (0, 1):
            events = EventAccumulator(str(run.path / "tensorboard" / axis / f"group-{group}")).Reload()
            names = {name for name, its in wanted if its == group} - {f"train/{axis}", f"evaluate/{axis}"}
            assert set(events.Tags()["scalars"]) == names
            for name in names:
                drawn = {event.step: event.value for event in events.Scalars(name)}
                assert drawn == pytest.approx({step * scale: v for step, v in wanted[name, group].items()}, rel=1e-6)
    events = EventAccumulator(str(run.path / "tensorboard" / "step" / "group-0")).Reload()
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    [begun] = [
        data.session_start_info
        for content in events.summary_metadata.values()
        if content.plugin_data.plugin_name == "hparams"
        for data in [HParamsPluginData.FromString(content.plugin_data.content)]
        if data.HasField("session_start_info")
    ]
    assert begun.hparams["train.batch"].number_value == run.config["train"]["batch"]
    assert begun.hparams["algorithm.name"].string_value == "codistill"


def wandb_records(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of an offline run, and its settings."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for content in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.HasField("history"):
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        if record.HasField("run"):
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, settings


def test_wandb_offline_records_every_row(follow: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = follow("wandb")
    [file] = (run.path / "wandb").glob("offline-run-*/*.wandb")
    until = time.monotonic() + 60
    rows, settings = wandb_records(file)
    while len(rows) < len(expected(run)["train/examples", 0]) and time.monotonic() < until:
        time.sleep(0.5)  # its process may still be writing
        rows, settings = wandb_records(file)
    seen: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if "/group-" in name:
                seen.setdefault((name.rpartition("/")[0], int(name[-1])), {})[row["step"]] = value
    assert seen == expected(run)
    assert {row["step"]: row["examples"] for row in rows} == {
        **expected(run)["train/examples", 0],
        **expected(run)["evaluate/examples", 0],
    }
    assert settings["train"]["batch"] == run.config["train"]["batch"]


def test_mlflow_records_every_row_and_continues_its_run(follow: Callable[..., Run], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = follow("mlflow")
    with sinks.forwarding(run, ["mlflow"]):  # as when the command is given again
        pass
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    [tracked] = client.search_runs([client.get_experiment_by_name("odist").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["train.batch"] == str(run.config["train"]["batch"])
    for (name, group), wanted in expected(run).items():
        drawn = {m.step: m.value for m in client.get_metric_history(tracked.info.run_id, f"{name}/group-{group}")}
        assert drawn == wanted


# What sinks cannot do


@pytest.mark.usefixtures("theirs")
def test_a_sink_that_raises_is_switched_off_and_changes_nothing(
    follow: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = follow("", name="alone")
    run = follow("raising,lines")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["warning: sink raising is switched off: OSError: the service"]
    assert weight_hashes(run) == weight_hashes(alone)
    taken = [json.loads(line) for line in (run.path / "lines").read_text().splitlines()]
    assert taken[:-1] == [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert taken[-1] == {"finished": True}


@pytest.mark.usefixtures("theirs")
def test_a_sink_that_hangs_holds_up_nobody(
    follow: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sinks, "SECONDS_TO_CLOSE", 0.2)
    assert follow("hanging").finished
    assert "sink hanging did not end" in capsys.readouterr().err
    assert any(thread.name == "sink-hanging" and thread.daemon for thread in threading.enumerate())


@pytest.mark.usefixtures("theirs")
def test_every_row_once_over_two_processes_of_a_run_and_half_lines_later(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {}, overrides=[], env={})
    rows = [{"kind": "train", "group": 0, "step": step} for step in range(4)]
    lines = [json.dumps(row) + "\n" for row in rows]
    file = run.path / "metrics.jsonl"
    with sinks.forwarding(run, ["lines"]):
        file.write_text(lines[0] + lines[1] + lines[2][:9])
    assert [json.loads(line) for line in (run.path / "lines").read_text().splitlines()] == [
        *rows[:2],
        {"finished": False},
    ]
    (run.path / "lines").unlink()
    with sinks.forwarding(run, ["lines"]):
        file.write_text(lines[0] + lines[1] + lines[2][:9] + "\n" + lines[3])  # as MetricsLog ends a torn line
    assert [json.loads(line) for line in (run.path / "lines").read_text().splitlines()] == [
        rows[3],
        {"finished": False},
    ]


@pytest.mark.usefixtures("theirs")
def test_what_is_refused_before_a_run_is_made(follow: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install 'no_such_package'"):
        follow("absent")
    with pytest.raises(UserError, match=r"tensorbord.*tensorboard"):
        follow("tensorbord")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_names_the_extra(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None\nfrom odist.run import sinks\nsinks.check([{name!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'odist[{name}]'" in done.stderr.splitlines()[-1]


def test_sinks_are_no_part_of_the_hash() -> None:
    from odist.config.identity import config_hash

    assert config_hash(make_config("run.sinks=[tensorboard]")) == config_hash(make_config())
