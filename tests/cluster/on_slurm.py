"""The committed batch script on a real Slurm with two nodes: the bits of one process, stopped, and after the death of a node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nodes
import pytest
import slurm
from workload import ROOT, SMALL, environment, hashes, saved, train_inline

from odist.run.folder import Run

SCRIPT = ROOT / "recipes" / "cluster" / "slurm.sbatch"
# What the script asks of a cluster with GPUs, on nodes that have none.
OPTIONS = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60")
LONG = ("train.passes=8",)  # several times as long: time to break something in
PATIENCE = 600.0  # seconds; starting four processes on a busy machine takes a minute

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(nodes.missing() is not None, reason=str(nodes.missing())),
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    folder = tmp_path_factory.mktemp("cluster")
    with (
        nodes.nodes(2, folder=folder) as machines,
        slurm.slurm(folder / "slurm", machines, cores=4, environment=environment()) as made,
    ):
        yield made


def submit(cluster: slurm.Slurm, run: Path, *overrides: str) -> str:
    log = run.with_suffix(".log")
    return cluster.submit(f"--output={log}", f"--chdir={run.parent}", *OPTIONS, str(SCRIPT), *SMALL, *overrides,
                          f"run.dir={run}")  # fmt: skip


def wait(cluster: slurm.Slurm, job: str, *states: str, run: Path) -> dict[str, str]:
    """Wait until a job is in one of these states, and return what Slurm says of it."""
    logs = [*cluster.logs, run.with_suffix(".log")]
    what = f"job {job} {' or '.join(states)}"
    nodes.eventually(lambda: cluster.job(job)["JobState"] in states, seconds=PATIENCE, what=what, logs=logs)
    return cluster.job(job)


def test_the_committed_script_gives_the_bits_of_one_process(cluster: slurm.Slurm, tmp_path: Path) -> None:
    expected = train_inline(tmp_path / "inline")
    job = submit(cluster, tmp_path / "slurm")
    end = wait(cluster, job, "COMPLETED", "FAILED", run=tmp_path / "slurm")
    said = (tmp_path / "slurm.log").read_text()
    assert end["JobState"] == "COMPLETED", said
    run = Run(tmp_path / "slurm")
    assert hashes(run) == expected
    assert run.status["state"] == "finished"
    assert run.config["launch"]["name"] == "env"
    assert run.config["launch"]["processes"] == 2
    assert said.count("starting.") == 1, said


def test_a_job_that_is_refused_is_not_started_again(cluster: slurm.Slurm, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path / "refused", "optim.rate=1")
    end = wait(cluster, job, "COMPLETED", "FAILED", run=tmp_path / "refused")
    said = (tmp_path / "refused.log").read_text()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "2:0", "0"), said
    assert said.count("optim.lr") == 1, said


def test_told_to_stop_and_after_the_death_of_a_node_the_job_goes_on_to_the_same_bits(
    cluster: slurm.Slurm, tmp_path: Path
) -> None:
    """SIGTERM to its step, as before the end of its time; then all processes of a node killed, its daemon too."""
    expected = train_inline(tmp_path / "inline", *LONG)
    run = Run(tmp_path / "slurm")
    log = tmp_path / "slurm.log"
    job = submit(cluster, run.path, *LONG)

    nodes.eventually(lambda: saved(run) >= 5, seconds=PATIENCE, what="a checkpoint", logs=[*cluster.logs, log])
    cluster.ask("scancel", "--signal=TERM", job)
    nodes.eventually(
        lambda: cluster.job(job)["Restarts"] == "1", seconds=PATIENCE, what="a restart", logs=[*cluster.logs, log]
    )
    stopped_at = saved(run)
    assert 5 <= stopped_at < 160

    nodes.eventually(
        lambda: saved(run) > stopped_at, seconds=PATIENCE, what="steps after the stop", logs=[*cluster.logs, log]
    )
    cluster.nodes["node1"].kill()
    nodes.eventually(
        lambda: cluster.job(job)["Restarts"] != "1" or cluster.states()["node1"].startswith("DOWN"),
        seconds=PATIENCE,
        what="the death of node1",
        logs=[*cluster.logs, log],
    )
    assert not run.finished
    cluster.boot("node1")
    end = wait(cluster, job, "COMPLETED", "FAILED", run=run.path)
    assert end["JobState"] == "COMPLETED", log.read_text()
    assert int(end["Restarts"]) >= 2
    assert hashes(run) == expected
    assert "continuing after step" in log.read_text()
