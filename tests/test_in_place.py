"""Runs in the processes of torchrun, srun or Kubernetes: the bits of one process, one message, restarts by the engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import make_config, odist, weight_hashes

from odist.config.read import load
from odist.config.schema import Config
from odist.errors import UserError
from odist.launch.check import validate
from odist.launch.ranks import Ranks, find_ranks, lay_out
from odist.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent
TINY = ("scale=smoke", "run.progress=false", "algorithm=codistill", "workers=8", "train.batch=10", "model.dropout=0.1",
        "model.hidden=[16]", "model.embedding_dim=4", "train.evaluate_every=0", "algorithm.burn_in=200",
        "exchange.interval=400", "task.synthetic.rows=2400", "task.synthetic.validation_rows=500")  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def torchrun(*words: str | Path, processes: int, cwd: Path, restarts: int = 0) -> subprocess.Popen[str]:
    engine = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
    ]
    command = [*engine, "--standalone", "-m", "odist", "train", *TINY, *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def eventually(question: Callable[[], object], *, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Hashes of the weights of a run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    done = odist("train", *TINY, "run.dir=whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return weight_hashes(Run(folder / "whole"))


def test_four_processes_of_torchrun_give_the_bits_of_one(bits: list[str], tmp_path: Path) -> None:
    said, errors = torchrun("run.dir=run", processes=4, cwd=tmp_path).communicate(timeout=240)
    run = Run(tmp_path / "run")
    assert [line.partition(" after")[0] for line in said.splitlines()] == ["run: starting.", "run: finished"], errors
    assert "Warning" not in errors
    assert weight_hashes(run) == bits
    assert load(run.config).launch.processes == 2
    assert run.finished


@pytest.mark.slow
def test_torchrun_starts_all_again_after_a_kill_to_the_same_bits(tmp_path: Path) -> None:
    longer = ("train.passes=4", "train.checkpoint_every=800")
    assert odist("train", *TINY, *longer, "run.dir=whole", cwd=tmp_path).returncode == 0
    parent = torchrun("run.dir=run", *longer, processes=4, cwd=tmp_path, restarts=2)
    run = Run(tmp_path / "run")
    eventually(lambda: parent.poll() is not None or (run.path.exists() and any(run.checkpoint_steps(1))))
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    victims = [int(pid) for pid in children if b"RANK=3\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(victims[0], signal.SIGKILL)
    said, errors = parent.communicate(timeout=240)
    assert parent.returncode == 0, errors
    assert "continuing after step" in said
    assert weight_hashes(run) == weight_hashes(Run(tmp_path / "whole"))


def by_hand(*words: str, size: int, cwd: Path, **variables: str) -> list[tuple[int, str]]:
    """Exit code and messages of every process of a job whose environment says who it is."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "odist", "train", *TINY, *words],
            cwd=cwd,
            env=environment(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), **variables),
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    return [(process.returncode, said) for process in started for _, said in [process.communicate(timeout=120)]]


def free_port() -> str:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def test_what_rank_0_refuses_ends_all_with_one_message(tmp_path: Path) -> None:
    (code, said), (other, silence) = by_hand("launch=local", size=2, cwd=tmp_path, MASTER_PORT=free_port())
    assert (code, other) == (2, 2)
    assert said.startswith("error: launch=local: torchrun, srun or Kubernetes has started 2 processes")
    assert "Traceback" not in said
    assert silence == ""
    assert list(tmp_path.iterdir()) == []


SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "4"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, which is no process of a step
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
            Ranks(1, 4, 1, "a", 7, one_machine=False),
        ),
        ({**SLURM, "MASTER_ADDR": "node1"}, Ranks(3, 8, 1, "node1", one_machine=False)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, Ranks(3, 8, 1)),
    ],
)  # fmt: skip
def test_who_this_process_is(variables: Mapping[str, str], expected: Ranks | None) -> None:
    assert find_ranks(variables) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (SLURM, "MASTER_ADDR is not set"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 with WORLD_SIZE=4"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK=one in the environment: expected a whole number"),
    ],
)
def test_what_an_engine_cannot_have_meant(variables: Mapping[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_ranks(variables)


def test_a_group_alone_trains_with_the_others_of_a_store(bits: list[str], tmp_path: Path) -> None:
    """Two commands with folders of their own that share nothing but a store and a name."""
    shared = ("exchange=store", f"exchange.url={tmp_path / 'store'}", "run.id=pair")
    other = subprocess.Popen(
        [sys.executable, "-m", "odist", "train", *TINY, *shared, "launch.group=1"], cwd=tmp_path, env=environment()
    )
    done = odist("train", *TINY, *shared, "launch.group=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert other.wait(timeout=120) == 0
    runs = [Run(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert [run.results["groups"][group]["weight_hash"] for group, run in enumerate(runs)] == bits
    assert [run.results["groups"][1 - group] for group, run in enumerate(runs)] == [None, None]
    assert all(run.finished for run in runs)


@pytest.mark.parametrize(
    ("size", "words", "message"),
    [
        (3, ["num_groups=2"], "Start 2, 4 ... in all, or one job for each group"),
        (6, ["workers=8"], r"3 processes for each group cannot carry workers=8.*Start 2 or 4 or 8 or 16 in all"),
        (4, ["launch.processes=4"], r"launch.processes=4: .*which are 2 for each of 2 groups"),
        (1, ["launch.group=2", "num_groups=2"], "the last is launch.group=1"),
        (1, ["launch.group=1"], "Add exchange.url=s3://bucket/folder and run.id=NAME"),
        (2, ["exchange=memory"], "exchange=memory reaches only groups of one process; with launch=env"),
    ],
)
def test_processes_that_cannot_be_laid_out_are_refused(size: int, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(make_config("launch=env", "algorithm=codistill", *words), size)


def checked(config: Config, size: int) -> None:
    lay_out(config, Ranks(size=size))
    validate(config)
