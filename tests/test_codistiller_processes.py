"""odist.Codistiller between processes: two terminals, one killed and started again; several processes of one group."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_codistiller import X, network
from test_mesh import together
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import odist
from odist.mesh import Mesh

ROOT = Path(__file__).resolve().parent.parent


def eventually(question: Callable[[], Any], *, seconds: float = 200.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return answer


class Terminal:
    """A terminal in which examples/plain_torch.py runs."""

    def __init__(self, group: int, *, folder: Path) -> None:
        self.output = folder / f"terminal-{group}-{time.monotonic_ns()}.txt"
        command = [sys.executable, str(ROOT / "examples" / "plain_torch.py"), "--steps", "1000000"]
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(
                [*command, "--url", str(folder / "pair"), "--group", str(group), "--seed", str(group)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def heard(self) -> int:
        """How often its teachers were swapped, as its last line says."""
        assert self.process.poll() is None, self.output.read_text()
        lines = [line for line in self.output.read_text().splitlines() if line.endswith("}")]
        return int(lines[-1].split("'teacher_swaps': ")[1].split(",")[0]) if lines else 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("first", [0, 1])
def test_two_terminals_in_any_order_one_killed_and_started_again(tmp_path: Path, first: int) -> None:
    terminals = [Terminal(first, folder=tmp_path)]
    try:
        manifests = tmp_path / "pair" / f"group-{1 - first}"
        eventually(lambda: (tmp_path / "pair" / f"group-{first}").is_dir())
        terminals.append(Terminal(1 - first, folder=tmp_path))
        eventually(lambda: all(terminal.heard() for terminal in terminals))
        if first == 1:
            return  # the rest is the same in either order
        terminals[1].kill()
        length = len(terminals[0].output.read_text())
        eventually(lambda: len(terminals[0].output.read_text()) > length)  # the other goes on
        swaps = terminals[0].heard()
        terminals.append(Terminal(1 - first, folder=tmp_path))
        eventually(terminals[2].heard)
        eventually(lambda: terminals[0].heard() > swaps)
        newest = max(json.loads(path.read_text())["incarnation"] for path in manifests.glob("*.json"))
        assert newest == 1
    finally:
        for terminal in terminals:
            terminal.kill()


def hear(peer: odist.Codistiller) -> None:
    while not peer.log()["num_teachers"]:  # the same in all processes
        time.sleep(0.01)
        peer.step()


def in_wrappers(folder: str, mesh: Mesh) -> dict[str, Any]:
    """Group 0 of a pair, by two processes: under DistributedDataParallel, then under FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    options: dict[str, Any] = {"group": 0, "peers": [1], "every": 1, "poll": 0.01}
    spread = DistributedDataParallel(network(seed=1))
    rows = X[mesh.replica.index :: 2]
    with odist.Codistiller(spread, url=f"{folder}/ddp", **options) as peer:
        hear(peer)
        peer.loss(spread(rows), rows).backward()
        found: dict[str, Any] = {
            "steps": peer.steps,
            "gradient": next(spread.parameters()).grad,
            "teacher": peer.teacher.panel.models[1].state_dict(),
            "kept": sorted(peer.state_dict()["teacher"]["panel"]["carry"]),  # by one process alone, without the other
        }
    sharded = network(seed=1)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    with odist.Codistiller(sharded, url=f"{folder}/fsdp", build_peer=lambda group: network(), **options) as peer:
        hear(peer)
        loss = peer.loss(sharded(rows), rows)
        loss.backward()
        gradient = next(sharded.parameters()).grad
        return {**found, "sharded_loss": loss.detach(), "sharded_gradient": gradient.full_tensor()}


def test_processes_of_one_group_swap_at_one_step_and_publish_plain_names(tmp_path: Path) -> None:
    theirs, ours = network(seed=2), network(seed=1)
    for kind in ("ddp", "fsdp"):
        with odist.Codistiller(theirs, url=str(tmp_path / kind), group=1, peers=[0], every=1) as other:
            other.step()
    found = together(functools.partial(in_wrappers, str(tmp_path)), tmp_path, processes=2)
    assert found[0]["steps"] == found[1]["steps"]
    for one in found:
        assert one["kept"] == [1]
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(one["teacher"][name], tensor)
    gradients = []
    for rows in (X[0::2], X[1::2]):
        model = network(seed=1)
        nn.functional.cross_entropy(model(rows), theirs.eval()(rows).softmax(-1)).backward()
        gradients.append(next(model.parameters()).grad)
    for one in found:
        torch.testing.assert_close(one["gradient"], (gradients[0] + gradients[1]) / 2)
        torch.testing.assert_close(one["sharded_gradient"], one["gradient"])
        assert one["sharded_loss"] > 0
    for kind in ("ddp", "fsdp"):
        published = load_file(max((tmp_path / kind / "group-0").glob("*.safetensors")))
        assert published.keys() == ours.state_dict().keys()
        assert torch.equal(published["0.weight"], ours.state_dict()["0.weight"])
