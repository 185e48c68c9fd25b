"""Groups as processes: the bits of one process, and what signals, crashes, silence and divergence cost.

Real processes, real signals. Runs are shared between questions, since every process takes seconds to start.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import compose, weight_hashes
from safetensors.torch import load_file, save_file

from odist.config.read import load
from odist.errors import Diverged, Interrupted, LostWorkers, UserError
from odist.launch import processes, results, worker
from odist.run.folder import Run, step_name

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("model.hidden=[16]", "model.embedding_dim=4", "train.evaluate_every=0", "train.log_every=50")
LOCKSTEP = (*SMALL, "algorithm=codistill", "model.dropout=0.1", "workers=4", "train.batch=25", "algorithm.burn_in=200",
            "exchange.interval=200", "exchange.lag=1", "exchange.lookahead=3")  # fmt: skip
FRESHEST = (*SMALL, "algorithm=codistill", "exchange.timing=freshest", "exchange.poll=0.005", "algorithm.burn_in=100",
            "exchange.interval=200", "train.batch=50", "train.checkpoint_every=500", "launch=local")  # fmt: skip


@pytest.fixture
def create(tmp_path: Path) -> Callable[..., Run]:
    """A run folder of its own for each call: `create("launch=local")`."""

    def make(*overrides: str) -> Run:
        return Run.create(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", compose(*overrides), overrides=[], env={})

    return make


def finish(run: Run, *, stop: Callable[[], bool] = lambda: False) -> Run:
    """Train a run in processes, as `odist train` does after it has made the folder."""
    processes.train(run, load(run.config), stop=stop)
    results.combine(run)
    return run


def change(run: Run, key: str, value: object) -> None:
    """Change a key that may be changed when a run is continued."""
    content = run.config
    part, name = key.split(".")
    content[part][name] = value
    (run.path / "config.yaml").write_text(yaml.safe_dump(content))


def workers_of(run: Run, group: int | None = None) -> list[int]:
    """Ids of the living processes that train a run, or one group of it."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0") if folder.name.isdigit() else []
            dead = bool(command) and (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if "odist.launch.worker" not in command or str(run.path) not in command or dead:
            continue
        if group is None or command[command.index(str(run.path)) + 1] == str(group):
            found.append(int(folder.name))
    return found


def step_of(run: Run, group: int) -> int:
    frame = run.metrics()
    return 0 if frame.empty else int(frame[frame["group"] == group]["step"].max() or 0)


def reached(run: Run, group: int, step: int) -> bool:
    frame = run.metrics()
    return not frame.empty and bool(((frame["group"] == group) & (frame["step"] >= step)).any())


def eventually(question: Callable[[], object], *, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Meanwhile(threading.Thread):
    """Does something to a run while it is trained; its errors are the test's."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act = act
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.act()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self.join()
        if self.error is not None:
            raise self.error


SPREAD = {
    "codistill-3-groups-2-processes": ([*LOCKSTEP, "num_groups=3"], 2),
    "sync-4-processes": ([*SMALL, "algorithm=sync", "workers=4", "train.batch=25", "model.dropout=0.1", "optim=adamw",
                          "optim.lr=0.01"], 4),
    "lm-2-processes": (["task=lm", "workers=2", "train.batch=4", "model.dropout=0.1", "train.max_examples=160",
                        "train.evaluate_batch=40", "task.synthetic.validation_rows=200"], 2),
    "diloco-2-processes": ([*SMALL, "algorithm=diloco", "train.batch=25", "algorithm.average_every=300", "optim=adamw",
                            "algorithm.sync_share=0.2", "algorithm.fragments=2", "optim.lr=0.01"], 2),
    "papa-2-groups-1-process": ([*SMALL, "algorithm=papa", "algorithm.pull=0.2", "exchange.interval=200",
                                 "train.max_examples=900"], 1),
    "local-sgd-images-2-processes-slow": (["task=imagenet", "algorithm=local_sgd", "workers=2", "train.batch=8", "task.size=8",
                                           "task.synthetic.rows=96"], 2),
    "ensemble-2-groups-1-process": ([*SMALL, "algorithm=ensemble", "num_groups=2", "model.dropout=0.1"], 1),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if "3-groups" in name or "slow" in name else []) for name in SPREAD],
)
def test_the_bits_do_not_depend_on_the_processes(create: Callable[..., Run], name: str) -> None:
    overrides, number = SPREAD[name]
    alone = create(*overrides)
    worker.main(alone)
    apart = finish(create(*overrides, "launch=local", f"launch.processes={number}"))
    assert weight_hashes(apart) == weight_hashes(alone)
    assert len(set(weight_hashes(alone))) == load(alone.config).num_groups
    for key in ("metrics", "flops", "steps", "distinct_examples", "total_examples", "predictor"):
        assert apart.results[key] == alone.results[key]
    assert apart.status["state"] == "finished"
    assert not list((apart.path / "logs").glob(".*.rendezvous"))
    columns = ["kind", "group", "step", "examples", "lr"]
    frames = [run.metrics().sort_values(["group", "step", "kind"], ignore_index=True) for run in (alone, apart)]
    assert frames[0][columns].equals(frames[1][columns])
    clocks = ["seconds", "time"]
    evaluations = [frame[frame["kind"] == "evaluate"].drop(columns=clocks) for frame in frames]
    assert not evaluations[0].empty
    pd.testing.assert_frame_equal(*(rows.dropna(axis=1, how="all") for rows in evaluations), check_exact=True)
    assert frames[0]["label_loss"].to_numpy() == pytest.approx(
        frames[1]["label_loss"].to_numpy(), rel=1e-6, nan_ok=True
    )


@pytest.mark.slow
def test_stopped_killed_and_orphaned_a_run_ends_in_the_same_bits(create: Callable[..., Run], tmp_path: Path) -> None:
    """SIGTERM, then kill -9 of a worker, then kill -9 of the command, then to the end, by one command (of other processes)."""
    shared = ["scale=smoke", "run.progress=false", *LOCKSTEP, "train.passes=6", "train.checkpoint_every=2500"]
    whole = create(*shared[2:])
    worker.main(whole)
    broken = Run(tmp_path / "broken")
    command = [sys.executable, "-m", "odist.cli.main", "train", *shared, "launch=local"]
    command += [f"run.dir={broken.path}"]

    def begin(number: int) -> subprocess.Popen[str]:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [*command, f"launch.processes={number}"], cwd=tmp_path, env=variables, text=True, **pipes
        )

    parent = begin(2)
    eventually(lambda: min(reached(broken, group, 10) for group in range(2)) or parent.poll() is not None)
    parent.send_signal(signal.SIGTERM)
    said = parent.communicate(timeout=60)[1]
    assert parent.returncode == 130, said
    assert "Traceback" not in said
    assert workers_of(broken) == []
    assert broken.status["state"] == "interrupted"
    saved = [broken.checkpoint_steps(group)[-1] for group in range(2)]
    assert broken.status["step"] == min(saved)
    assert 10 <= min(saved) < 100

    parent = begin(2)
    eventually(lambda: reached(broken, 1, saved[1] + 10) or parent.poll() is not None)
    before = workers_of(broken, 0)
    assert len(before) == 2
    os.kill(before[-1], signal.SIGKILL)  # one process of one group; the group starts again, its peer waits
    eventually(lambda: len(set(workers_of(broken, 0)) - set(before)) == 2 or parent.poll() is not None)
    eventually(lambda: reached(broken, 0, saved[0] + 25) or parent.poll() is not None)
    assert parent.poll() is None, parent.communicate()
    orphans = workers_of(broken)
    parent.kill()
    parent.communicate()

    parent = begin(1)  # at once: the orphans may still be saving
    said = parent.communicate(timeout=120)[1]
    assert parent.returncode == 0, said
    eventually(lambda: not set(orphans) & set(workers_of(broken)))  # on a busy machine one may still be leaving
    assert broken.status["state"] == "finished"
    assert weight_hashes(broken) == weight_hashes(whole)
    assert not list(broken.path.rglob(".*.tmp"))


def test_orphans_save_and_leave(create: Callable[..., Run], tmp_path: Path) -> None:
    """A command killed before its workers have loaded torch leaves none behind that would train on for ever."""
    run = create(*LOCKSTEP, "launch=local", "train.passes=1000")
    code = (
        "from odist.config.read import load\nfrom odist.launch import processes\nfrom odist.run.folder import Run\n"
        f"run = Run.open({str(run.path)!r})\nprocesses.train(run, load(run.config), stop=lambda: False)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    eventually(lambda: len(workers_of(run)) == 2)
    parent.kill()
    parent.wait()
    eventually(lambda: workers_of(run) == [])


def test_a_group_that_crashes_again_and_again_ends_the_run(
    create: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = create(*LOCKSTEP, "launch=local", "launch.restarts=1", "train.passes=1000")
    killed: list[int] = []

    def kill_twice() -> None:
        for _ in range(2):
            eventually(lambda: set(workers_of(run, 1)) - set(killed))
            killed.extend(set(workers_of(run, 1)) - set(killed))
            os.kill(killed[-1], signal.SIGKILL)

    with (
        Meanwhile(kill_twice),
        pytest.raises(LostWorkers, match=r"group 1 was killed 2 times .* by signal 9 \(SIGKILL") as caught,
    ):
        finish(run)
    assert caught.value.exit_code == 4
    assert caught.value.lost_groups == ()  # under lock-step no other group has come to its end
    assert workers_of(run) == []
    [again] = [line for line in capsys.readouterr().err.splitlines() if "is started again" in line]
    assert "group 1 was killed by signal 9 (SIGKILL, as when memory runs out) after step" in again
    assert "launch.restarts=1" in again


def test_what_a_killed_process_left_is_repaired(create: Callable[..., Run]) -> None:
    """Killed while it replaced a checkpoint: the old one, set aside, comes back; half of the new one goes."""
    whole, run = create(*LOCKSTEP), create(*LOCKSTEP)
    worker.main(whole)
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        worker.main(run, stop=lambda: next(asked) >= 10)
    root, step = run.checkpoint_root(1), run.checkpoint_steps(1)[-1]
    (root / f".{step_name(step)}.4711.tmp").mkdir()
    (root / f".{step_name(step)}.4711.tmp" / "model.safetensors").write_bytes(b"half")
    os.rename(root / step_name(step), root / f".{step_name(step)}.replaced")
    worker.main(run)
    assert weight_hashes(run) == weight_hashes(whole)
    assert all(not folder.name.startswith(".") for folder in root.iterdir())


def test_groups_saved_apart_are_not_trained_from_the_start_again(create: Callable[..., Run]) -> None:
    run = create(*LOCKSTEP, "train.checkpoint_every=0")
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        worker.main(run, stop=lambda: next(asked) >= 10)
    root, step = run.checkpoint_root(1), run.checkpoint_steps(1)[-1]
    os.rename(root / step_name(step), root / step_name(step + 3))  # as launch=local leaves them
    with pytest.raises(UserError, match=rf"saved after steps {step}, {step + 3}.*continue with launch=local"):
        worker.main(run)
    assert run.checkpoint_steps(0) == [step]


def test_lock_step_waits_for_a_silent_peer_then_saves(create: Callable[..., Run]) -> None:
    whole = create(*LOCKSTEP, "train.passes=4")
    worker.main(whole)
    run = create(*LOCKSTEP, "train.passes=4", "launch=local", "exchange.timeout=8")

    def silence() -> None:
        eventually(lambda: reached(run, 1, 5))
        (silent,) = workers_of(run, 1)
        os.kill(silent, signal.SIGSTOP)
        eventually(lambda: not workers_of(run, 0))
        os.kill(silent, signal.SIGCONT)

    with (
        Meanwhile(silence),
        pytest.raises(LostWorkers, match=r"group 1 has not published its weights of step") as caught,
    ):
        finish(run)
    assert caught.value.exit_code == 4
    assert workers_of(run) == []
    assert all(run.checkpoint_steps(group) for group in range(2))
    change(run, "exchange.timeout", 60.0)
    assert weight_hashes(finish(run)) == weight_hashes(whole)


def test_freshest_goes_on_without_a_peer_that_died(create: Callable[..., Run]) -> None:
    """Its age grows and nothing else; continued, the lost group alone comes to its end."""
    run = create(*FRESHEST, "train.passes=20", "launch.restarts=0")

    def kill() -> None:
        eventually(lambda: reached(run, 1, 100) and reached(run, 0, 100))
        os.kill(workers_of(run, 1)[0], signal.SIGKILL)

    with (
        Meanwhile(kill),
        pytest.raises(
            LostWorkers, match=r"(?s)group 1 was killed once .*The other groups are trained and saved"
        ) as caught,
    ):
        finish(run)
    assert caught.value.lost_groups == (1,)
    frame = run.metrics(kind="train")
    own = frame[frame["group"] == 0]
    assert own["step"].max() == 800
    died = int(frame[frame["group"] == 1]["step"].max())
    assert died < 800
    swaps = [tuple(swap) for cell in own["swaps"].dropna() for swap in cell]
    assert swaps
    for step, group, incarnation, snapshot, digest in swaps:
        assert (group, incarnation, len(digest)) == (1, 0, 64)
        assert step % 4 == 0
        assert 0 < snapshot <= died + 4
        assert snapshot % 4 == 0
    assert [swap[3] for swap in swaps] == sorted({swap[3] for swap in swaps})
    assert own["teacher_age_steps"].iloc[-1] == 799 - swaps[-1][3]
    kept = run.checkpoint_steps(1)[-1]
    rows = len(own)
    finish(run)
    assert kept > 0
    after = run.metrics(kind="train")
    assert len(after[after["group"] == 0]) == rows  # a finished group is not trained again
    assert step_of(run, 1) == 800
    continued = after[(after["group"] == 1) & (after["step"] > died)]
    assert continued["teacher_age_steps"].iloc[-1] <= 4 + 3 * 4  # group 0's last snapshots are still there


def test_freshest_goes_on_without_a_peer_that_diverged(create: Callable[..., Run]) -> None:
    run = create(*FRESHEST, "train.passes=20")
    with pytest.raises(Interrupted):
        finish(run, stop=lambda: reached(run, 0, 60) and reached(run, 1, 60))
    for group in range(2):
        assert run.checkpoint_steps(group)[-1] >= 60
    path = run.checkpoint_root(1) / step_name(run.checkpoint_steps(1)[-1]) / "model.safetensors"
    weights = load_file(path)
    weights = {name: torch.full_like(tensor, math.nan) for name, tensor in weights.items()}
    save_file(weights, path)
    (path.parent / "digest.json").unlink()  # as an older odist saved it; with a digest it would be set aside
    with pytest.raises(
        Diverged, match=r"(?s)group 1: the loss is nan.*The other groups are trained and saved"
    ) as caught:
        finish(run)
    assert caught.value.exit_code == 3
    frame = run.metrics(kind="train")
    own = frame[frame["group"] == 0]
    assert own["step"].max() == 800
    assert own["label_loss"].notna().all()
    assert own["label_loss"].iloc[-1] < own["label_loss"].iloc[0]
    assert own["distill_loss"].iloc[-1] > 0  # by what group 1 published while it was well
    assert workers_of(run) == []
