"""Groups that stop, hang or are killed for good: they are named, the others finish, and the same command makes the run whole.

Real processes and signals, in few runs, since every process takes seconds to start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from odist.config.identity import config_hash
from odist.config.read import load
from odist.run.folder import Run

if TYPE_CHECKING:
    from odist.launch.watch import Pulse

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["train", "scale=smoke", "run.progress=false", "model.hidden=[16]", "model.embedding_dim=4", "algorithm=codistill",
           "train.evaluate_every=0", "train.log_every=50", "train.batch=50", "train.checkpoint_every=500", "launch=local",
           "algorithm.burn_in=100", "exchange.interval=200"]  # fmt: skip
FRESHEST = ["exchange.timing=freshest", "exchange.poll=0.05", "num_groups=3", "launch.restarts=0"]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "odist.cli.main", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}


def typed(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240)


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def eventually(question: Callable[[], object], *, of: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert of.poll() is None, of.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def worker_of(run: Run, group: int) -> int:
    """Id of the only process of a group."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0") if folder.name.isdigit() else []
        except OSError:
            continue
        if "odist.launch.worker" in words and words[words.index("odist.launch.worker") + 1 :][:2] == [
            str(run.path),
            str(group),
        ]:
            return int(folder.name)
    raise AssertionError(f"group {group} has no process")


def steps(run: Run, group: int) -> list[int]:
    return [row["step"] for row in run.rows()[0] if row["group"] == group and row["kind"] == "train"]


def test_of_three_groups_one_is_stopped_and_one_killed_and_the_last_has_results(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    asked = [*COMMAND, *FRESHEST, "train.passes=10", f"run.dir={run.path}"]
    parent = start(*asked, "launch.patience=5", cwd=tmp_path)
    eventually(lambda: run.path.is_dir() and all(steps(run, group) for group in (0, 2)), of=parent)
    stopped = worker_of(run, 0)
    os.kill(stopped, signal.SIGSTOP)
    os.kill(worker_of(run, 2), signal.SIGKILL)
    said = parent.communicate(timeout=120)[1]
    assert parent.returncode == 4, said
    assert "Traceback" not in said
    assert "note: group 0, step " in said
    assert f"`kill -CONT {stopped}` lets it go on" in said
    assert f"group 0 showed no sign of life for 5 s (process {stopped} was stopped)" in said
    assert "group 2 was killed once (launch.restarts=0), the last time by signal 9 (SIGKILL" in said
    assert "The same command continues it" in said
    assert "results.json and the predictions are theirs alone" in said

    assert run.status["state"] == "incomplete"
    partial = run.results
    assert partial["missing_groups"] == [0, 2]
    assert partial["predictor"] == "group-1"
    assert [group is None for group in partial["groups"]] == [True, False, True]
    assert partial["total_examples"] == partial["examples_per_model"]
    evaluated = typed("eval", run.path, "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    numbers = json.loads(evaluated.stdout)
    assert (numbers["predictor"], numbers["missing_groups"]) == ("group-1", [0, 2])
    assert numbers["log_loss"] == pytest.approx(partial["metrics"]["log_loss"], rel=1e-6)
    assert "groups 0, 2 are missing: group-1 predicts" in evaluated.stderr
    shutil.copytree(run.path, tmp_path / "twin")
    compared = typed("churn", run.path, tmp_path / "twin", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "groups 0, 2 are missing: group-1 predicts" in compared.stdout
    before = steps(run, 1)

    done = typed(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps(run, 1) == before  # a group that is done is not trained again
    assert run.status["state"] == "finished"
    whole = run.results
    assert "missing_groups" not in whole
    assert whole["predictor"] == "group-0"
    assert [set(group) for group in whole["groups"]] == [set(partial["groups"][1])] * 3
    assert whole["groups"][1] == partial["groups"][1]
    assert whole["total_examples"] == 3 * partial["examples_per_model"]
    assert not list((run.path / "logs").glob(".*.rendezvous"))


def test_under_lock_step_a_stopped_group_ends_the_run_and_a_killed_commands_leftovers_go(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    asked = [*COMMAND, "train.passes=1000", "exchange.timeout=60", "launch.patience=4", f"run.dir={run.path}"]
    parent = start(*asked, cwd=tmp_path)
    eventually(lambda: run.path.is_dir() and steps(run, 0) and steps(run, 1), of=parent)
    left = run.path / "logs" / ".group-0-4711-0.rendezvous"
    left.touch()
    os.kill(worker_of(run, 1), signal.SIGSTOP)
    began = time.monotonic()
    said = parent.communicate(timeout=120)[1]
    assert parent.returncode == 4, said
    assert (
        time.monotonic() - began < 55
    )  # neither the timeout of the waiting group nor the time that a hung one has to save
    assert "group 1 showed no sign of life for 4 s" in said
    assert run.status["state"] == "failed"
    assert all(run.checkpoint_steps(group) for group in range(2))  # the stopped one was woken to save
    assert not left.exists()


@pytest.fixture
def process() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process that runs some Python; it is killed at the end."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(code: str) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen([sys.executable, "-c", code]))
        return begun[-1]

    yield begin
    for one in begun:
        one.kill()
        one.wait()


def feel(pulse: Pulse, process: subprocess.Popen[bytes], *, seconds: float) -> list[str]:
    """What is heard of a process within some seconds, up to its end."""
    heard: list[str] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not pulse.gone:
        pulse.feel([process.pid])
        heard += pulse.news()
        time.sleep(0.05)
    return heard


def test_a_process_that_beats_or_computes_is_alive(
    process: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    from odist.launch.watch import Pulse

    beat = tmp_path / "beat"
    beats = process(f"import pathlib, time\nwhile True: pathlib.Path({str(beat)!r}).touch(); time.sleep(0.1)")
    pulse = Pulse(beat, patience=2.0)
    while not beat.exists():
        time.sleep(0.01)
    assert feel(pulse, beats, seconds=4.0) == []
    assert not pulse.gone
    computes = process("while True: pass")
    pulse = Pulse(tmp_path / "none", patience=1.0)
    assert feel(pulse, computes, seconds=3.0) == []
    assert not pulse.gone  # before ten times the patience is over
    feel(pulse, computes, seconds=9.0)
    assert pulse.gone
    assert pulse.describe().startswith("made no step for 10 s")


def test_a_stopped_process_is_told_of_and_one_that_goes_on_too(
    process: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    from odist.launch.watch import Pulse

    computes = process("while True: pass")
    pulse = Pulse(tmp_path / "none", patience=60.0)
    assert feel(pulse, computes, seconds=1.5) == []
    os.kill(computes.pid, signal.SIGSTOP)
    pulse.patience = 6.0
    (told,) = feel(pulse, computes, seconds=4.0)
    assert f"after 6 s (launch.patience) it counts as lost. Process {computes.pid} is stopped" in told
    os.kill(computes.pid, signal.SIGCONT)
    assert feel(pulse, computes, seconds=2.5) == ["goes on."]


def test_patience_decides_nothing_of_a_run() -> None:
    from conftest import compose

    base = load(compose())
    assert config_hash(load(compose("launch.patience=7"))) == config_hash(base)
    content = compose()
    del content["launch"]["patience"]  # a run of an older odist
    assert config_hash(load(content)) == config_hash(base)
