"""A disk that fills up while a run trains: one sentence, exit code 1, nothing half-written, and the same bits afterwards.

The largest size of a file that a process may write stands for the end of the disk: it needs no rights and hits every way of
writing, in this process and in those of groups.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import odist, weight_hashes
from test_damaged_runs import COMMAND

from odist.run.folder import Run

OFTEN = ["train.log_every=50", "train.evaluate_every=100"]
SELDOM = ["train.log_every=800", "train.evaluate_every=0"]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process and those that it starts write no file beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run on a disk with room."""
    home = tmp_path_factory.mktemp("whole")
    assert odist(*COMMAND, *OFTEN, "run.dir=run", cwd=home).returncode == 0
    return Run(home / "run")


def sizes(run: Run) -> dict[str, int]:
    newest = run.checkpoint_root(0) / f"step-{run.checkpoint_steps(0)[-1]:010d}"
    return {path.name: path.stat().st_size for path in [*newest.iterdir(), *run.path.glob("*.json*")]}


@pytest.mark.parametrize("first", ["metrics.jsonl", "model.safetensors", "state.pt", "config.yaml"])
def test_training_says_what_could_not_be_written_and_goes_on_later(whole: Run, tmp_path: Path, first: str) -> None:
    """`first`: the file that does not fit."""
    known = sizes(whole)
    limit = {"config.yaml": 120, "metrics.jsonl": 6000}.get(first) or known[first] - 1
    asked = [*COMMAND, *(SELDOM if first in ("model.safetensors", "state.pt") else OFTEN), "run.dir=run"]
    if first == "config.yaml":  # continued: the folder is there already
        with largest_file(6000):
            odist(*asked, cwd=tmp_path)
    with largest_file(limit):
        done = odist(*asked, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert sentence.startswith("error: run/")
    assert "run: run" not in sentence
    assert "cannot be written (" in sentence
    assert "free" in sentence
    assert "the same command continues" in sentence
    run = Run(tmp_path / "run")
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]
    for group in range(2):
        for step in run.checkpoint_steps(group):
            folder = run.checkpoint_root(group) / f"step-{step:010d}"
            assert {path.name for path in folder.iterdir()} == {"model.safetensors", "state.pt", "digest.json"}
    done = odist(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert weight_hashes(run) == weight_hashes(whole)


def test_a_group_in_a_process_of_its_own_says_so_too_and_is_not_started_again_and_again(tmp_path: Path) -> None:
    alone = [word for word in COMMAND if word != "algorithm=codistill"]
    asked = [*alone, "algorithm=ensemble", "launch=local", "run.dir=run"]
    with largest_file(6000):
        done = odist(*asked, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("cannot be written (") == 1
    assert "launch.restarts" not in done.stderr
    run = Run(tmp_path / "run")
    assert "Traceback" not in "".join(path.read_text() for path in run.path.glob("logs/*.log"))
    assert odist(*asked, cwd=tmp_path).returncode == 0
    assert run.finished
