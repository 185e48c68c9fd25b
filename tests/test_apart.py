"""Groups in commands of their own, which share nothing but a store and a name: one is killed and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENDLESS = [
    "scale=smoke",
    "run.progress=false",
    "algorithm=codistill",
    "num_groups=3",
    "exchange=store",
    "exchange.timing=freshest",
    "exchange.poll=0.05",
    "run.id=apart",
    "train.passes=10000",
    "train.checkpoint_every=1000",
    "train.log_every=500",
    "train.evaluate_every=0",
    "algorithm.burn_in=0",
    "exchange.interval=500",
    "model.hidden=[16]",
    "model.embedding_dim=4",
]


def start(group: int, folder: Path) -> subprocess.Popen[str]:
    words = [*ENDLESS, f"exchange.url={folder / 'store'}", f"launch.group={group}", f"run.dir=group-{group}"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "odist", "train", *words],
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def rows(folder: Path, group: int) -> list[dict[str, Any]]:
    path = folder / f"group-{group}" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def swaps(folder: Path, group: int) -> set[tuple[int, int]]:
    """Group and incarnation of the snapshots that a group has taken."""
    return {(peer, start) for row in rows(folder, group) for _, peer, start, *_ in row.get("swaps", [])}


def eventually(question: Callable[[], object], *processes: subprocess.Popen[str], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "waited in vain"
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_leaves_dies_and_comes_back_and_the_other_goes_on(tmp_path: Path) -> None:
    """The third group of the three never comes, and nobody waits for it."""
    first, second = start(0, tmp_path), start(1, tmp_path)
    try:
        eventually(lambda: swaps(tmp_path, 0) and swaps(tmp_path, 1), first, second)
        eventually(lambda: list((tmp_path / "group-1" / "checkpoints" / "group-1").glob("step-*")), first, second)
        second.kill()
        second.communicate()
        seen = len(rows(tmp_path, 0))
        eventually(lambda: len(rows(tmp_path, 0)) > seen + 3, first)
        assert swaps(tmp_path, 0) == {(1, 0)}
        second = start(1, tmp_path)
        eventually(lambda: (1, 1) in swaps(tmp_path, 0), first, second)
        assert swaps(tmp_path, 1) == {(0, 0)}
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        for process in (first, second):
            said = process.communicate(timeout=120)[1]
            assert process.returncode == 130, said
            assert "Traceback" not in said
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert [row["teacher_age_steps"] for row in rows(tmp_path, 0)][-1] is not None
