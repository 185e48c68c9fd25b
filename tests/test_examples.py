"""The scripts in examples/: what they take, and that each runs."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(*words: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """examples/compare.py as a module."""
    spec = importlib.util.spec_from_file_location("compare", EXAMPLES / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return module


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


def test_the_comparison_of_the_examples_is_made_from_its_records(compare: Any) -> None:
    folder = ROOT / "reports" / "examples"
    records = [compare.Record(**json.loads(line)) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert compare.page(records) == (folder / "examples.md").read_text()


def test_a_comparison_runs_both_processes_of_a_pair_and_judges_by_seed(compare: Any) -> None:
    from scipy.stats import ttest_rel

    found = compare.run("plain PyTorch", "pair", seed=3, steps=20)
    assert [(one.group, one.steps, one.examples) for one in found] == [(0, 20, 1280), (1, 20, 1280)]
    assert found[0].lowest_validation_loss != found[1].lowest_validation_loss
    singles, firsts, seconds = (2.0, 2.1, 1.9, 2.2), (1.8, 1.95, 1.85, 2.0), (1.9, 1.9, 1.8, 2.05)

    def record(arm: str, seed: int, group: int, loss: float) -> Any:
        known = {
            "example": "lightning",
            "steps": 9,
            "examples": 9,
            "teacher_swaps": 1,
            "seconds": 1.0,
            "hardware": "none",
        }
        losses = {"validation_loss": 2 * loss, "lowest_validation_loss": loss}
        return compare.Record(arm=arm, seed=seed, group=group, **losses, **known)

    records = [record("single", seed, 0, loss) for seed, loss in enumerate(singles)]
    records += [record("pair", seed, 0, loss) for seed, loss in enumerate(firsts)]
    records += [record("pair", seed, 1, loss) for seed, loss in enumerate(seconds)]
    means = [(one + other) / 2 for one, other in zip(firsts, seconds, strict=True)]
    difference = compare.difference(records, "lightning", "primary")
    p_value = difference.p_value(difference.value)
    assert p_value == pytest.approx(ttest_rel(means, singles).pvalue)
    assert compare.verdict(difference, p_value) == "holds"
    assert compare.verdict(difference, 0.06) == "not decided"
    text = compare.page(records)
    assert (
        f"| lightning | {compare.estimate(difference.value, difference.interval(), sign=True)} | {p_value:.2g} | holds |"
        in text
    )
    assert "| lightning | – | – | too few seeds |" in text  # of twice the steps there are no runs
