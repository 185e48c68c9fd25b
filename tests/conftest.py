"""Shared by the tests: real configurations composed by Hydra, and real runs in temporary folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from odist.config import Config, load, register
from odist.run import Run

CONF = Path(__file__).parent.parent / "conf"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def compose(*overrides: str) -> dict[str, Any]:
    """The finished configuration of a command line, as plain data."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = hydra_compose("config", overrides=["scale=smoke", "run.progress=false", *overrides])
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def make_config(*overrides: str) -> Config:
    """The typed configuration of a command line at scale=smoke."""
    return load(compose(*overrides))


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Run]:
    """Train a run in a folder of its own: `train("algorithm=codistill", name="a", stop=...)`."""
    from odist import worker

    def start(*overrides: str, name: str = "run", stop: Callable[[], bool] = lambda: False) -> Run:
        folder = tmp_path / name
        run = Run(folder) if folder.exists() else Run.create(folder, compose(*overrides), overrides=[], env={})
        worker.main(run, stop=stop)
        return run

    return start


@pytest.fixture
def criteo_file() -> Path:
    """Real Criteo rows; the test is skipped, and says so, where they are not."""
    path = SHARED / "criteo" / "train.txt.gz"
    if not path.is_file():
        pytest.skip(f"real data not present: {path.relative_to(SHARED.parent.parent)}")
    return path


def weight_hashes(run: Run) -> list[str]:
    """Hash of each group's final weights."""
    return [group["weight_hash"] for group in run.results["groups"]]
