"""Checkpoints written in the background, and to a second place: a step pays for a copy of the state, not for the disk.

One checkpoint is written at a time; the next waits for it. What went wrong with one is raised when the next is to be saved,
or at the end. A process that is killed while it writes leaves the checkpoint before.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from odist.engine import checkpoint
from odist.errors import OdistError
from odist.run.copies import Copy
from odist.run.folder import Run
from odist.run.log import note


class Saver:
    """Writes the checkpoints of one group.

    run: where they go; group: whose they are; copy: a second place; None: none. What cannot be copied is counted, and the
    next one is tried again
    """

    def __init__(self, run: Run, group: int, *, copy: Copy | None = None) -> None:
        self.run, self.group, self.copy = run, group, copy
        self.copy_failed = 0
        self.copy_reason = ""
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._writing: Future[Any] | None = None

    def save(self, *, step: int, model: nn.Module, average: nn.Module | None = None, state: dict[str, Any]) -> None:
        """Copy the state after `step` completed steps and write it in the background.

        average: predicts in place of the model, see odist.engine.average; state: as in `checkpoint.save`
        All of their tensors may change as soon as this returns.
        Raises CannotWrite if the checkpoint before could not be written.
        """
        self.wait()
        models = {checkpoint.WEIGHTS: model, **({} if average is None else {checkpoint.AVERAGE: average})}
        weights = {
            name: {key: tensor.contiguous() for key, tensor in copied(dict(one.state_dict())).items()}
            for name, one in models.items()
        }
        self._writing = self._writer.submit(self._write, step, weights, copied(state))

    def _write(self, step: int, weights: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        checkpoint.save(self.run, self.group, step=step, weights=weights, state=state)
        if self.copy is None:
            return
        try:
            self.copy.send(self.group, step=step)
            self.copy_reason = ""
        except Exception as error:  # every back end of fsspec has kinds of its own
            self.copy_failed += 1
            self.copy_reason = f"{self.copy.url}: {type(error).__name__}: {error}"

    def wait(self) -> None:
        """Return when nothing is being written. Raises what the writing has raised, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Finish what is being written; training has ended, and how is said by whoever ended it."""
        with self._writer, contextlib.suppress(OdistError):
            self.wait()
        if self.copy_reason:
            note(f"the last checkpoint of group {self.group} could not be copied: {self.copy_reason}")

    def log(self) -> dict[str, Any]:
        """Failures of copying so far, for a row of metrics.jsonl."""
        return {"copy_failed": self.copy_failed, "copy_reason": self.copy_reason} if self.copy_failed else {}


def copied(state: Any) -> Any:
    """Nested dicts, lists and tuples with copies of their tensors in the processor's memory.

    Strides stay: the order of additions in a norm, and with it the last bits, follows them.
    """
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state
