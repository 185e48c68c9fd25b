"""Checkpoints in the background: the step pays for a copy, the next one waits, and what failed is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_full_disk import largest_file
from torch import nn

from odist.engine import checkpoint
from odist.engine.saving import Saver
from odist.errors import CannotWrite
from odist.run.folder import Run, step_name

NO_STATE = dict.fromkeys(checkpoint.STATE_KEYS, 0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The disk goes on when this is set."""
    goes_on, write = threading.Event(), checkpoint.save

    def save(*arguments: Any, **options: Any) -> Path:
        assert goes_on.wait(20)
        return write(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    return goes_on


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    made = Saver(Run.create(tmp_path / "run", {}, overrides=[], env={}), 0)
    yield made
    made.close()


def state(value: float) -> dict[str, Any]:
    return {**NO_STATE, "carry": {0: [torch.full((2,), value), None]}, "window": (value,)}


def test_a_step_goes_on_while_its_checkpoint_is_written(saver: Saver, slow: threading.Event) -> None:
    model, kept = nn.Linear(2, 1), state(4.0)
    with torch.no_grad():
        model.weight.fill_(4.0)
    saver.save(step=4, model=model, state=kept)
    assert saver.run.checkpoint_steps(0) == []
    with torch.no_grad():  # the next steps of training
        model.weight.fill_(5.0)
        kept["carry"][0][0].fill_(5.0)
    slow.set()
    saver.wait()
    folder = saver.run.checkpoint_root(0) / step_name(4)
    assert load_file(folder / checkpoint.WEIGHTS)["weight"].tolist() == [[4.0, 4.0]]
    again = nn.Linear(2, 1)
    found = checkpoint.load(saver.run, 0, step=4, model=again)
    assert found["carry"][0][0].tolist() == [4.0, 4.0]
    assert (found["carry"][0][1], found["window"], again.weight.tolist()) == (None, (4.0,), [[4.0, 4.0]])


def test_the_next_checkpoint_waits_for_the_one_before(saver: Saver, slow: threading.Event) -> None:
    model = nn.Linear(2, 1)
    saver.save(step=4, model=model, state=state(4.0))
    second = threading.Thread(target=lambda: saver.save(step=8, model=model, state=state(8.0)))
    second.start()
    time.sleep(0.1)
    assert second.is_alive()
    slow.set()
    second.join(20)
    assert not second.is_alive()
    saver.close()
    assert saver.run.checkpoint_steps(0) == [4, 8]


def test_what_could_not_be_written_is_said_by_the_next_save_and_at_the_end(saver: Saver) -> None:
    model = nn.Linear(2, 1)
    for act in (lambda: saver.save(step=8, model=model, state=state(8.0)), saver.wait):
        with largest_file(100):
            saver.save(step=4, model=model, state=state(4.0))
            with pytest.raises(CannotWrite, match="the same command continues"):
                act()
    saver.wait()  # said once
    saver.save(step=12, model=model, state=state(12.0))
    saver.wait()
    assert saver.run.checkpoint_steps(0) == [12]
