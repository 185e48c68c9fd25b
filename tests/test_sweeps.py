"""Multiruns through Hydra's own sweeper and launcher and through the plug-ins of odist[sweeps].

What failed, Ctrl-C, what is left behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml

from odist.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"],
    "optuna": [
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=1",
    ],
}


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name != "basic" else []) for name in PLUGINS])
def plugin(request: pytest.FixtureRequest) -> list[str]:
    return PLUGINS[request.param]


def start(folder: Path, *arguments: str, mark: str) -> subprocess.Popen[str]:
    """`odist train -m` as the leader of a process group, as in a terminal; its processes carry `mark`."""
    command = [sys.executable, "-m", "odist.cli.main", "train", "-m", "run.dir=many", "run.progress=false", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ODIST_TEST": mark, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def marked(mark: str) -> list[str]:
    """Command lines of the living processes that were started by the command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"ODIST_TEST={mark}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # ended meanwhile
    return found


def none_left(mark: str) -> None:
    end = time.monotonic() + 10  # a pool's watcher of resources ends after the pool
    while left := marked(mark):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_a_failed_job_is_listed_with_its_folder_and_stops_no_other(plugin: list[str], tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    process = start(tmp_path, *plugin, "scale=smoke", "optim.lr=1e30,0.05", mark=mark)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    runs = {run.config["optim"]["lr"]: run for run in Run.find(tmp_path / "many")}
    assert {lr: run.status["state"] for lr, run in runs.items()} == {1e30: "diverged", 0.05: "finished"}
    listed = errors[errors.index("error: 1 of the runs failed:") :].splitlines()
    assert "optim.lr=1e" in listed[1]
    assert str(runs[1e30].path.relative_to(tmp_path)) in listed[1]
    assert len(listed) == 2
    assert "Traceback" not in errors
    none_left(mark)
    if not plugin:  # plug-ins leave their own files
        assert sorted((tmp_path / "many").iterdir()) == sorted(run.path for run in runs.values())
    for path in (tmp_path / "many").glob(".sweep/*/optimization_results.yaml"):
        best = yaml.safe_load(path.read_text())
        assert best["best_params"] == {"optim.lr": 0.05}
        assert best["best_value"] == runs[0.05].results["metrics"]["log_loss"]


def test_ctrl_c_saves_every_run_and_leaves_no_process(plugin: list[str], tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    long = ["scale=small", "train.passes=1000", "train.evaluate_every=0", "seed=1,2"]
    process = start(tmp_path, *plugin, *long, mark=mark)
    end = time.monotonic() + 90
    while not any(run.status.get("state") == "running" for run in Run.find(tmp_path / "many")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "same command continues" in errors
    for run in Run.find(tmp_path / "many"):
        if run.status["state"] == "created":  # a launcher's other process had not begun with it
            assert run.checkpoint_steps(0) == []
        else:
            assert run.status["state"] == "interrupted"
            assert run.checkpoint_steps(0) == [run.status["step"]]
    none_left(mark)
    if not plugin:  # the second job was not started
        [only] = (tmp_path / "many").iterdir()
        assert only.name.startswith("criteo-sync-s1-")


def test_a_killed_process_of_the_launcher_is_named_with_what_is_done(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    rows = ["scale=smoke", "train.passes=0.5,100000,100001", "train.evaluate_every=0"]
    process = start(tmp_path, *PLUGINS["joblib"], *rows, mark=mark)
    end = time.monotonic() + 120
    many, done, running = tmp_path / "many", None, None
    while done is None or running is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
        runs = list(Run.find(many))
        done = next((run for run in runs if run.status.get("state") == "finished"), None)
        running = next((run for run in runs if run.status.get("state") == "running"), None)
    time.sleep(1)  # the launcher's process ends its first job
    os.kill(running.status["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 4, errors
    assert "Traceback" not in errors
    said = errors[errors.index("error: ") :]
    assert "a process of the launcher was killed" in said
    assert re.search(r"^  done: .*train.passes=0.5", said, re.M)
    assert re.search(r"^  not finished: .*train.passes=10000[01]", said, re.M)
    assert "The same command" in said
    assert not list(many.glob(".sweep/*/active-*"))
    none_left(mark)


def test_what_failed_is_told_once(tmp_path: Path) -> None:
    process = start(tmp_path, "scale=smoke", "algorithm=codistill", "num_groups=1", "seed=1,2", mark=uuid.uuid4().hex)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2, errors
    assert errors.count("needs peers to learn from") == 2  # two jobs
    assert "error: 2 of the runs failed" in errors
