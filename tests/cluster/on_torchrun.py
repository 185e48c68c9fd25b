"""torchrun with a c10d rendezvous on two nodes with names and addresses of their own; one of them dies and comes back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import nodes
import pytest
from workload import SMALL, environment, hashes, saved, train_inline

from odist.run.folder import Run

PATIENCE = 600.0

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(nodes.missing() is not None, reason=str(nodes.missing())),
]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[nodes.Node]]:
    with nodes.nodes(2, folder=tmp_path) as made:
        yield made


def start(node: nodes.Node, run: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start the two processes of one node; the first node is where they meet."""
    rendezvous = ("--rdzv-backend=c10d", "--rdzv-endpoint=node0:29400", "--rdzv-id=odist", "--max-restarts=3")
    words = ("torchrun", "--nnodes=2", "--nproc-per-node=2", *rendezvous, "-m", "odist", "train")
    variables = {**environment(), "GLOO_SOCKET_IFNAME": "eth0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    log = run.with_name(f"{node.name}.log")
    return node.start(*words, *SMALL, *overrides, f"run.dir={run}", log=log, environment=variables)


def test_two_nodes_give_the_bits_of_one_process_also_when_one_dies(machines: list[nodes.Node], tmp_path: Path) -> None:
    overrides = ("train.passes=6",)
    expected = train_inline(tmp_path / "inline", *overrides)
    run = Run(tmp_path / "run")
    logs = [tmp_path / f"{node.name}.log" for node in machines]
    first, second = (start(node, run.path, *overrides) for node in machines)
    nodes.eventually(lambda: saved(run) >= 10 or first.poll() is not None, seconds=PATIENCE, what="steps", logs=logs)
    machines[1].kill()
    second.wait()
    assert not run.finished
    second = start(machines[1], run.path, *overrides)  # as an operator, or Kubernetes, would
    nodes.eventually(lambda: first.poll() is not None, seconds=PATIENCE, what="the end on node0", logs=logs)
    nodes.eventually(lambda: second.poll() is not None, seconds=PATIENCE, what="the end on node1", logs=logs)
    said = "".join(log.read_text() for log in logs)
    assert (first.returncode, second.returncode) == (0, 0), said
    assert hashes(run) == expected
    assert run.status["state"] == "finished"
    assert "continuing after step" in said
