"""Damaged snapshots, through the store and the teacher of a codistilled group.

Group 1's folder holds a good snapshot, a damaged one and, later, a newer good one. Group 0's teacher must take the good
ones, nothing but what group 1 published, and never raise. Kinds of damage: snapshot_damage.py.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import compose
from torch import Tensor

from fuzz.campaign import WrongUse, strict_json
from fuzz.snapshot_damage import DAMAGES, Damaged
from odist.config.read import load
from odist.engine import problem, wiring
from odist.engine.trainer import Trainer
from odist.errors import LostWorkers
from odist.mesh import Axis, Mesh
from odist.run.folder import Run
from odist.run.log import MetricsLog, make_progress

KINDS = [f"{kind}, {timing}" for kind in DAMAGES for timing in ("freshest", "lockstep")]
OLD, BAD, NEW = 4, 8, 12  # steps of the good, the damaged and the newer good snapshot
PATIENCE = 20.0  # seconds until a good snapshot must have been taken
BY_DESIGN = ("weights that are not finite",)  # under lock-step a group hears what its peer has, whatever it is


class Target:
    """Snapshots that a group really published, copied and damaged for each case."""

    def __init__(self, root: Path) -> None:
        settings = ["exchange.poll=0.005", "exchange.keep=9", "train.prefetch=0", "train.log_every=200"]
        data = ["algorithm.burn_in=0", "task.synthetic.vocabulary=20", "task.synthetic.validation_rows=100"]
        given = compose("algorithm=codistill", "exchange=store", *settings, *data)
        self.home = Run.create(root / "run", given, overrides=[], env={"run_id": "fuzz"})
        self.config = load(self.home.config)
        self.task = problem.build_task(self.config)
        self.clock = problem.make_clock(self.config, self.task)
        self.log = MetricsLog(self.home, progress=make_progress(show=False, num_groups=2, num_steps=0))
        self.published: dict[int, dict[str, Tensor]] = {}
        parts = self._parts(root, "freshest")
        for step in (OLD, BAD, NEW):  # an end of its own for each, so that the next does not delete the last
            trainer = self._trainer(parts, group=1)
            self._weigh(trainer, step)
            self.published[step] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            trainer.teacher.publish(step, lambda model=trainer.model: model)
            self._close(parts, trainer)
        names = sorted((root / "exchange" / "group-1").glob("*.json"))
        self.manifests = dict(zip((OLD, BAD, NEW), names, strict=True))
        for path in names:  # as one start of the group would have left them
            path.write_text(json.dumps({**json.loads(path.read_text()), "incarnation": 0}))

    def _parts(self, folder: Path, timing: str, *, timeout: float = PATIENCE) -> wiring.Parts:
        exchange = replace(self.config.exchange, url=str(folder / "exchange"), timing=timing, timeout=timeout)
        config = replace(self.config, exchange=exchange)
        return wiring.Parts(config, self.home, self.task, clock=self.clock, log=self.log, stop=lambda: False)

    def _trainer(self, parts: wiring.Parts, *, group: int) -> Trainer:
        return wiring.build_trainer(parts, Mesh(group=Axis(group, 2)), stop=lambda step: False)

    def _close(self, parts: wiring.Parts, trainer: Trainer) -> None:
        trainer.loader.close()
        while parts.exchanges:
            parts.exchanges.pop().close()

    def _weigh(self, trainer: Trainer, step: int) -> None:
        """Give the model weights that only this step has."""
        with torch.no_grad():
            for tensor in trainer.model.state_dict().values():
                tensor.fill_(step) if not tensor.is_floating_point() else tensor.normal_(
                    std=0.1, generator=torch.Generator().manual_seed(step)
                )

    def place(self, step: int, shelf: Path, *, name: str | None = None) -> Path:
        """Copy a good snapshot, under another name if one is given; return its manifest."""
        manifest = self.manifests[step]
        name = name or manifest.stem
        shutil.copy(manifest.with_suffix(".safetensors"), shelf / f"{name}.safetensors")
        content = {**json.loads(manifest.read_text()), "blob": f"{name}.safetensors"}
        (shelf / f"{name}.json").write_text(json.dumps(content))
        return shelf / f"{name}.json"

    def run(self, kind: str, rng: random.Random, folder: Path) -> str:
        damage, timing = kind.rsplit(", ", 1)
        shelf = folder / "exchange" / "group-1"
        alone = timing == "lockstep" and rng.random() < 0.5
        parts = self._parts(folder, timing, timeout=0.1 if alone else PATIENCE)
        shelf.mkdir(parents=True)
        self.place(OLD, shelf)
        manifest = self.place(BAD, shelf)
        damaged = Damaged(manifest, self.manifests[OLD].stem, rng)
        DAMAGES[damage](damaged)
        restarted = rng.random() < 0.3
        trainer = self._trainer(parts, group=0)
        try:
            listener = Listener(self, trainer, timing, design=damage in BY_DESIGN and timing == "lockstep")
            if timing == "freshest":
                listener.hear(OLD)
                self._renew(folder, shelf, restarted=restarted)
                listener.hear(NEW)
            else:
                listener.hear_at(OLD)
                if not alone:
                    self.place(BAD, shelf, name=f"step-{BAD:010d}-{rng.getrandbits(48):012x}")
                listener.hear_at(BAD, may_fail=alone)
                self._renew(folder, shelf, restarted=restarted)
                listener.hear_at(NEW)
            return "rejected" if listener.rejected() else "harmless"
        finally:
            self._close(parts, trainer)
            damaged.release()

    def _renew(self, folder: Path, shelf: Path, *, restarted: bool) -> None:
        """Offer the newer good snapshot: by a copy, or by the group itself, started anew over the damaged folder."""
        if not restarted:
            self.place(NEW, shelf)
            return
        parts = self._parts(folder, "freshest")
        trainer = self._trainer(parts, group=1)
        try:
            trainer.model.load_state_dict(self.published[NEW])
            trainer.teacher.publish(NEW, lambda: trainer.model)
        finally:
            self._close(parts, trainer)


class Listener:
    """Group 0's teacher, and what may be heard from it."""

    def __init__(self, target: Target, trainer: Trainer, timing: str, *, design: bool) -> None:
        self.published, self.trainer, self.timing, self.design = target.published, trainer, timing, design
        self.teacher: Any = trainer.teacher

    def hear(self, wanted: int) -> None:
        """Refresh until the teacher has the weights of step `wanted`, or newer ones that are as good."""
        end, step = time.monotonic() + PATIENCE, OLD
        while True:
            self.teacher.refresh(step)
            heard = self._check(step)
            if heard is not None and heard >= wanted:
                return
            if time.monotonic() > end:
                raise WrongUse(f"step {wanted} is there and was not taken, but {heard}; {self.teacher.log()}")
            time.sleep(0.002)

    def hear_at(self, step: int, *, may_fail: bool = False) -> None:
        """Refresh at a step of the agreed plan."""
        try:
            self.teacher.refresh(step)
        except LostWorkers as error:
            if not may_fail:
                raise WrongUse(f"step {step} is there and was not taken: {error}; {self.teacher.log()}") from error
            reason = self.teacher.log().get("exchange_reason", "")
            if reason and "\n" not in reason and reason[:20] not in str(error):
                raise WrongUse(f"the message does not say why: {error} ({reason})") from error
            return
        if self._check(step) != step:
            raise WrongUse(f"step {step} was agreed and another one taken; {self.teacher.log()}")

    def _check(self, step: int) -> int | None:
        """Which step's weights are in use; WrongUse if they are nobody's. The teacher must be able to use them."""
        models = self.teacher.panel.models
        if not models:
            return None
        found = models[1].state_dict()
        steps = [own for own, weights in self.published.items() if _equal(found, weights)]
        if not steps and not self.design:
            raise WrongUse("the teacher has weights that nobody published")
        batch = self.trainer.loader[step][0]
        logits, _ = self.trainer.task.forward(self.trainer.model, batch, None)
        soft = self.teacher.soft_targets(step, 0, batch, logits.detach())
        if not self.design and (soft is None or not all(bool(values.isfinite().all()) for values in soft.values)):
            raise WrongUse("the teacher says nothing")
        row = self.teacher.log()
        strict_json(row)
        age = row["teacher_age_steps"]
        if age is not None and not -self.trainer.clock.num_steps <= age <= self.trainer.clock.num_steps:
            raise WrongUse(f"teacher_age_steps={age}")
        return steps[0] if steps else BAD

    def rejected(self) -> bool:
        """Whether the damaged snapshot was counted."""
        row = self.teacher.log()
        return bool(row.get("exchange_rejected") or row.get("exchange_problems"))


def _equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )
