"""Shared by the tests: real configurations composed by Hydra, and real runs in temporary folders."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from odist.config.read import load, register
from odist.config.schema import Config
from odist.errors import Interrupted
from odist.run.folder import Run

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


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """No library that the tests use may look for a server or report to one, in their processes neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Run]:
    """Train or continue a run in a folder of its own: `train("algorithm=codistill", name="a", stop=...)`."""
    from odist.launch import processes, results, worker

    def start(*overrides: str, name: str = "run", stop: Callable[[], bool] = lambda: False) -> Run:
        folder = tmp_path / name
        run = Run(folder) if folder.exists() else Run.create(folder, compose(*overrides), overrides=[], env={})
        config = load(run.config)
        if config.launch.name == "local":
            processes.train(run, config, stop=stop)
            results.combine(run)
        else:
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


@dataclass(frozen=True)
class Typed:
    """What a typed command gave."""

    returncode: int
    stdout: str
    stderr: str


def odist(*arguments: str | Path, cwd: Path) -> Typed:
    """Type a command of odist, without the seconds of a new process; what is no OdistError comes out as itself."""
    from odist.cli.main import main

    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["odist", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Typed(code, out.getvalue(), errors.getvalue())


def weight_hashes(run: Run) -> list[str]:
    """Hash of each group's final weights."""
    return [group["weight_hash"] for group in run.results["groups"]]


class StopAfter:
    """Asks for a stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def train_whole_and_broken(train: Callable[..., Run], *overrides: str, stops: Sequence[int]) -> tuple[Run, Run]:
    """Train without a break, and stopped after so many steps again and again; both must end in the same bits."""
    whole = train(*overrides, name="whole")
    for steps in stops:
        with pytest.raises(Interrupted):
            train(*overrides, name="broken", stop=StopAfter(steps))
    broken = train(*overrides, name="broken")
    assert weight_hashes(broken) == weight_hashes(whole)
    assert broken.results["metrics"] == whole.results["metrics"]
    return whole, broken


def kill_and_continue(*arguments: str, folder: Path, once: Path) -> str:
    """Type a command of odist in `folder`, kill it once a file is there, type it again; what it prints."""
    command = [sys.executable, "-c", "from odist.cli.main import main; main()", *arguments]
    environment = {"PYTHONPATH": str(CONF.parent), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None and not once.exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
