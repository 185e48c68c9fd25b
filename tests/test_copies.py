"""Copies of checkpoints in another place, from which the same command goes on where nothing of the run is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from conftest import StopAfter, odist, weight_hashes

from odist.config.composed import composed
from odist.errors import Interrupted
from odist.launch import launch
from odist.launch.stop import Stop
from odist.run.folder import Run

TYPED = [
    "scale=smoke",
    "run.progress=false",
    "algorithm=codistill",
    "train.max_examples=800",
    "algorithm.burn_in=200",
    "exchange.interval=200",
    "train.checkpoint_every=100",
    "train.evaluate_every=0",
]


@pytest.fixture
def url() -> Iterator[str]:
    yield "memory://copies"
    fsspec.filesystem("memory").store.clear()


def steps_at(url: str) -> dict[str, list[str]]:
    """Copied checkpoints by group."""
    fs, root = fsspec.core.url_to_fs(url)
    found: dict[str, list[str]] = {}
    for path in fs.find(root):
        *_, group, step, name = path.split("/")
        if name == "digest.json":
            found.setdefault(group, []).append(step)
    return {group: sorted(steps) for group, steps in found.items()}


def begin(folder: Path, *words: str, steps: int) -> None:
    """Train as `odist train` does, and stop after so many steps."""

    class Soon(Stop):
        def __init__(self) -> None:
            super().__init__()
            self.after = StopAfter(steps)

        def __call__(self) -> bool:
            return self.after()

    content = composed([*TYPED, *words, f"run.dir={folder}"])
    assert content is not None
    with pytest.raises(Interrupted):
        launch.train(launch.prepare_config(content), overrides=[], stop=Soon())


def test_another_machine_goes_on_from_the_copies_to_the_same_bits(url: str, tmp_path: Path) -> None:
    whole = odist("train", *TYPED, "run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    copy = f"train.checkpoint_copy={url}"
    begin(tmp_path / "first", copy, steps=11)
    known = Run(tmp_path / "first").env
    copied = steps_at(url)
    assert copied["group-0"] == copied["group-1"]
    assert 2 <= len(copied["group-0"]) < 5
    shutil.rmtree(tmp_path / "first")  # the machine is gone
    done = odist("train", *TYPED, copy, "run.dir=second", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{2 * len(copied['group-0'])} checkpoints brought back from" in done.stderr
    second = Run(tmp_path / "second")
    assert weight_hashes(second) == weight_hashes(Run(tmp_path / "whole"))
    assert second.env["run_id"] == known["run_id"]
    assert min(second.metrics(kind="train")["step"]) > 5
    assert steps_at(url)["group-1"][-1] == f"step-{second.results['steps']:010d}"
    other = odist("train", *TYPED, copy, "seed=5", "run.dir=other", cwd=tmp_path)  # begins from nothing beside it
    assert (other.returncode, "brought back" in other.stderr) == (0, False)


def test_a_place_that_takes_no_copies_costs_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = odist("train", *TYPED, "train.checkpoint_copy=file", "run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    assert f"train.checkpoint_copy: {tmp_path / 'file'}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_place_that_is_lost_while_it_trains_costs_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def away(*_: object, **__: object) -> None:
        raise OSError("the line is cut")

    monkeypatch.setattr(MemoryFileSystem, "put_file", away)
    few = [word for word in TYPED if not word.startswith("algorithm")]
    done = odist("train", *few, "train.checkpoint_copy=memory://x", "run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "could not be copied: memory://x/criteo-sync-s0-" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("copy_failed", 0) for row in rows) > 1


def test_a_run_folder_has_to_be_on_this_machine(tmp_path: Path) -> None:
    done = odist("train", *TYPED, "run.dir=s3://bucket/run", cwd=tmp_path)
    assert done.returncode == 2
    assert "Give one, and train.checkpoint_copy=s3://bucket/run for copies" in done.stderr
