"""Codistillation under the Trainer of pytorch-lightning: a callback, and one term in `training_step`.

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        return F.cross_entropy(logits, y) + self.peer.loss(logits, x)

    Trainer(callbacks=[Codistillation(url="s3://bucket/run", group=0, peers=[1], burn_in=1000)]).fit(module, rows)

Needs the extra `lightning`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from odist.errors import UserError
from odist.own_loop.codistiller import Codistiller


class Codistillation(Callback):
    """Gives the module its `peer`, an `odist.Codistiller`, when training begins; counts its steps, saves and closes it.

    model: module -> the part of it that is published and whose copies teach; None: the whole module
    options: of `odist.Codistiller`

    Every optimiser step counts, so with two optimisers a batch counts twice.
    """

    def __init__(self, *, model: Callable[[LightningModule], nn.Module] | None = None, **options: Any) -> None:
        self.model = model
        self.options = options
        self.peer: Codistiller | None = None
        self._steps = 0  # of the Trainer, up to which the peer has counted
        self._saved: dict[str, Any] | None = None  # before training began, or since it ended

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        published = pl_module if self.model is None else self.model(pl_module)
        if getattr(pl_module, "peer", None) is not None:
            raise UserError(
                "the module has an attribute `peer` already: the callback Codistillation puts the teacher there."
            )
        self.peer = Codistiller(published, **self.options)
        if self._saved is not None:
            self.peer.load_state_dict(self._saved)
        self._steps = trainer.global_step
        pl_module.peer = self.peer

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.peer is not None
        while self._steps < trainer.global_step:
            self._steps += 1
            self.peer.step()
        if trainer.global_step % trainer.log_every_n_steps == 0:
            said = {name: float(value) for name, value in self.peer.log().items() if isinstance(value, int | float)}
            pl_module.log_dict(said)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.peer is not None:
            self._saved = self.peer.state_dict()  # for a checkpoint after the end
            self.peer.close()
            self.peer = None
            pl_module.peer = None

    def state_dict(self) -> dict[str, Any]:
        return (self._saved or {}) if self.peer is None else self.peer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None
