"""The scripts in examples/: what they take, and that each runs."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(*words: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_codistillation_takes_fewer_than_ten_lines() -> None:
    before, after = ((EXAMPLES / name).read_text().splitlines() for name in ("plain_torch_before.py", "plain_torch.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("+ ", "- ") and line[2:].strip()]
    assert len([line for line in changed if line.startswith("+")]) < 10, changed
    assert any("peer.loss" in line for line in changed)


def test_the_script_without_a_peer() -> None:
    assert "step 200: validation" in run(EXAMPLES / "plain_torch_before.py", "--steps", "200")


def test_two_processes_of_one_group(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shown = run(*launcher, EXAMPLES / "ddp.py", "--url", tmp_path / "pair", "--steps", "20")
    assert "step 20: validation" in shown
    assert list((tmp_path / "pair" / "group-0").glob("*.json"))


def test_transformers(tmp_path: Path) -> None:
    shown = run(
        EXAMPLES / "transformers_trainer.py", "--url", tmp_path / "pair", "--steps", "20", "--bytes", "3000",
    )  # fmt: skip
    assert "validation_loss" in shown
    assert list((tmp_path / "pair" / "group-0").glob("*.json"))


def test_lightning(tmp_path: Path) -> None:
    shown = run(
        EXAMPLES / "lightning_module.py", "--url", tmp_path / "pair", "--steps", "40",
    )  # fmt: skip
    assert "validation_loss" in shown
    assert list((tmp_path / "pair" / "group-0").glob("*.json"))


def test_accelerate(tmp_path: Path) -> None:
    shown = run(
        EXAMPLES / "accelerate_loop.py", "--url", tmp_path / "pair", "--steps", "60",
    )  # fmt: skip
    assert "step 60: validation" in shown
    assert list((tmp_path / "pair" / "group-0").glob("*.json"))
