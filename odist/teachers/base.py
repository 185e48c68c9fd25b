"""What a teacher is: a source of soft targets for the batches of one group.

`Panel` predicts with frozen models, each with its own carry, and may look ahead; the teachers that hold
models share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from odist.errors import UserError
from odist.exchange.base import Exchange, Schedule, Weights
from odist.losses import Soft
from odist.mesh import Mesh
from odist.optim import Clock
from odist.tasks.base import Batch, Carry, Forward, Task
from odist.teachers.kept import Kept
from odist.teachers.precision import prepared, takes_weights, with_products_in

Batches = Callable[[int], Sequence[Batch]]  # step -> one batch per virtual worker, pure


@dataclass(frozen=True)
class TeacherSetup:
    """What the teacher of one group may use.

    task: for its forward and its prior; student: the group's own model; mesh: its workers and its place among the groups
    build_peer: a model like that of another group, for its weights; relative_cost: operations of a forward of that model, as
        a multiple of the student's
    seed: the run's; clock: by which examples become steps; batches: of the group, on its device
    rows: step, worker -> numbers of the rows in its batch
    load_models: folders of finished runs and files of weights -> the models that predict for them
    training_rows: what a file of predictions of these rows says of them
    open_exchange: peers, schedule -> this group's end of the exchange
    stop: whether somebody who waits has to save and end
    keep_mean: takes the mean of the groups' parameters after so many completed steps, where that predicts
    """

    task: Task
    student: nn.Module
    build_peer: Callable[[int], nn.Module]
    relative_cost: Callable[[int], float]
    mesh: Mesh
    seed: int
    clock: Clock
    batches: Batches
    rows: Callable[[int, int], np.ndarray]
    load_models: Callable[[Sequence[str]], list[nn.Module]]
    training_rows: str
    open_exchange: Callable[[Sequence[int], Schedule], Exchange]
    stop: Callable[[], bool]
    keep_mean: Callable[[int, Weights], None] = lambda step, means: None


class Teacher(Protocol):
    """A source of soft targets.

    lookahead: steps whose batches it reads at once
    """

    lookahead: int

    @classmethod
    def of(cls, options: Any, setup: TeacherSetup) -> Teacher:
        """Make the teacher. options: of the dataclass that it declares in `odist.teachers`, None without one."""
        ...

    def forwards(self, step: int) -> float:
        """Forwards of a model that each example of `step` (0-based) costs, counted in those of the student."""
        ...

    def due(self, step: int) -> bool:
        """Whether the group publishes its weights after `step` completed steps."""
        ...

    def publish(self, step: int, offered: Callable[[], nn.Module]) -> None:
        """Offer the group's own weights to its peers, if they are due after `step` completed steps."""
        ...

    def refresh(self, step: int) -> None:
        """Take newer weights if they are due after `step` completed steps."""
        ...

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        """Soft targets of worker `worker`'s batch at `step` (0-based); None while not heard."""
        ...

    def log(self) -> dict[str, Any]:
        """What a log row says about the teacher."""
        ...

    def summary(self) -> dict[str, Any]:
        """What the results of the run say about the teacher."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Shows(Protocol):
    """A teacher that other groups hear as this one predicts, in the middle of a step."""

    def show(self, step: int, worker: int, logits: Tensor) -> bool:
        """Show them what worker `worker` predicts; whether they have to take their turns before `soft_targets` is asked."""
        ...


class WithoutPeers:
    """What every teacher says that hears no other group: nothing to publish, to refresh, to log or to keep."""

    lookahead = 1

    def forwards(self, step: int) -> float:
        return 0

    def due(self, step: int) -> bool:
        return False

    def publish(self, step: int, offered: Callable[[], nn.Module]) -> None:
        pass

    def refresh(self, step: int) -> None:
        pass

    def log(self) -> dict[str, Any]:
        return {}

    def summary(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class NoTeacher(WithoutPeers):
    """No soft targets: plain training."""

    @classmethod
    def of(cls, options: None, setup: TeacherSetup) -> NoTeacher:
        return cls()

    def soft_targets(self, step: int, worker: int, batch: Batch, logits: Tensor) -> Soft | None:
        return None


@runtime_checkable
class HeardElsewhere(Protocol):
    """A teacher that wants to know when the workers of its group have heard theirs, in processes of their own."""

    def hear(self, step: int) -> None: ...


def rising(soft: Soft | None, *, step: int, burn_in: int, ramp: int) -> Soft | None:
    """Soft targets with the share of their weight that counts at `step`, rising over `ramp` steps after the burn-in to 1."""
    passed = step - burn_in + 1
    return soft if soft is None or passed >= ramp else replace(soft, weight=passed / ramp)


class Panel:
    """Frozen models that predict a group's batches, under no-grad and in eval mode.

    forward: the task's forward; batches: step -> batches, for looking ahead
    lookahead: steps whose batches of one worker are predicted in one pass. Windows start at fixed multiples of it and at every swap;
    a resume computes its window anew from the same start, since another matrix shape may give other bits
    precision: of their products: see `odist.teachers.precision.prepared`; "auto" leaves them as they come
    kept: which classes of their predictions are kept; None: all
    """

    def __init__(
        self,
        forward: Forward,
        *,
        batches: Batches,
        lookahead: int,
        num_steps: int,
        mesh: Mesh,
        precision: str = "auto",
        kept: Kept | None = None,
    ) -> None:
        self.forward = with_products_in(forward, precision)
        self.precision = precision
        self.kept = kept
        self.batches = batches
        self.lookahead = lookahead
        self.num_steps = num_steps
        self.mesh = mesh
        self.models: dict[int, nn.Module] = {}  # by peer
        self.swap_step = 0
        self.carry: dict[int, dict[int, Carry]] = {}  # by peer, then worker
        self._window: dict[tuple[int, int], tuple[Tensor, ...]] = {}  # by step and worker

    def place(self, peer: int, model: nn.Module, *, step: int) -> None:
        """Use `model`, which this changes, for `peer` from `step` on; the peer's carry is kept, a new peer starts at zero."""
        model.eval()
        model.requires_grad_(False)
        self.models[peer] = prepared(model, self.precision)
        self.carry.setdefault(peer, {})
        self.swap_step = step
        self._window.clear()

    def reusable(self, peer: int) -> nn.Module | None:
        """The model of `peer`, if newer weights can be loaded into it; else None."""
        model = self.models.get(peer)
        return model if model is not None and takes_weights(model) else None

    def remove(self, peer: int, *, step: int) -> None:
        """Use no model for `peer` from `step` on, and forget its carry."""
        del self.models[peer]
        del self.carry[peer]
        self.swap_step = step
        self._window.clear()

    @torch.no_grad()
    def predict(self, step: int, worker: int, batch: Batch) -> Soft | None:
        """Logits of every model on worker `worker`'s batch at `step`; None without models."""
        if not self.models:
            return None
        if self.lookahead > 1:
            if (step, worker) not in self._window:
                self._look_ahead(step)
            return Soft(self._window.pop((step, worker)))
        values = []
        for peer, model in sorted(self.models.items()):
            logits, carry = self.forward(model, batch, self.carry[peer].get(worker))
            if carry is not None:
                self.carry[peer][worker] = carry
            values.append(logits if self.kept is None else self.kept(logits))
        return Soft(tuple(values))

    def _look_ahead(self, step: int) -> None:
        start = max(step // self.lookahead * self.lookahead, self.swap_step)
        stop = min((step // self.lookahead + 1) * self.lookahead, self.num_steps)
        by_worker = zip(*(self.batches(at) for at in range(start, stop)), strict=True)
        self._window = {}
        for worker, batches in zip(self.mesh.local_workers, by_worker, strict=True):
            # One pass a worker: a matrix over several workers would have other bits in other processes.
            whole = concatenate(batches)
            pieces = []
            for _, model in sorted(self.models.items()):
                logits, carry = self.forward(model, whole, None)
                if carry is not None:
                    raise UserError(
                        f"exchange.lookahead={self.lookahead}: a model that carries its state from batch to batch cannot "
                        "predict several of them in one pass. Type exchange.lookahead=1."
                    )
                logits = logits if self.kept is None else self.kept(logits)
                pieces.append(logits.split([len(batch.targets) for batch in batches]))
            for at, values in zip(range(start, stop), zip(*pieces, strict=True), strict=True):
                self._window[at, worker] = values

    def state_dict(self) -> dict[str, Any]:
        carry: dict[int, dict[int, Carry]] = {peer: {} for peer in self.carry}
        stateful = any(self.carry.values())  # in every process alike; others need not be asked for nothing
        for part in self.mesh.gather_to_writer(self.carry) if stateful else []:
            for peer, by_worker in part.items():
                carry.setdefault(peer, {}).update(by_worker)
        return {"swap_step": self.swap_step, "carry": carry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.swap_step = state["swap_step"]
        self.carry = state["carry"]


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches along the examples."""
    return Batch(
        tuple(torch.cat(parts) for parts in zip(*(batch.inputs for batch in batches), strict=True)),
        torch.cat([batch.targets for batch in batches]),
        torch.cat([batch.weights for batch in batches]),
    )
