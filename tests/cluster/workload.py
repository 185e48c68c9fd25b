"""The run that every test of this folder trains, in one process for comparison and in the processes of an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from odist.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("scale=smoke", "algorithm=codistill", "num_groups=2", "workers=4", "train.batch=25", "model.hidden=[16]",
         "model.embedding_dim=4", "model.dropout=0.1", "train.evaluate_every=0", "algorithm.burn_in=200", "exchange.interval=200",
         "exchange.lag=1", "train.log_every=100", "train.checkpoint_every=500", "run.progress=false")  # fmt: skip


def environment() -> dict[str, str]:
    """Variables with which `odist`, `torchrun` and `python` of this environment and this source are found."""
    folder = str(Path(sys.executable).parent)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD", "MASTER"))
    }
    return {**kept, "PATH": f"{folder}:{kept.get('PATH', '')}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def train_inline(folder: Path, *overrides: str) -> list[str]:
    """Train in one process; returns the hash of each group's weights."""
    command = [sys.executable, "-m", "odist", "train", *SMALL, *overrides, f"run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return hashes(Run(folder))


def hashes(run: Run) -> list[str]:
    """Hash of each group's final weights."""
    return [group["weight_hash"] for group in run.results["groups"]]


def saved(run: Run) -> int:
    """The newest step that both groups of a run have saved; 0 before there is one."""
    return min(max(run.checkpoint_steps(group), default=0) for group in range(2))
