"""Codistillation under the Trainer of transformers: the loss by a mix-in, the steps by a callback.

    class CodistillTrainer(TaughtTrainerMixin, Trainer): ...

    args = TrainingArguments(...)                      # first: it starts torch.distributed
    with odist.Codistiller(model, url="s3://bucket/run", group=0, peers=[1], burn_in=1000) as peer:
        CodistillTrainer(model=model, args=args, train_dataset=rows, peer=peer).train()

Needs the extra `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from odist.own_loop.taught import Taught
from odist.wrapping import unwrapped

STATE = "odist_teachers.pt"  # beside the Trainer's own files in a checkpoint
IGNORED = -100  # label of what does not count

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


class TaughtCallback(TrainerCallback):
    """Counts the optimiser steps for a teacher, and saves and loads it with the Trainer's checkpoints."""

    def __init__(self, peer: Taught) -> None:
        self.peer = peer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            return
        saved = _folder(args, state) / STATE
        if saved.is_file():
            self.peer.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
        else:
            self.peer.steps = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.peer.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _folder(args, state)
        if state.is_world_process_zero and folder.is_dir():
            torch.save(self.peer.state_dict(), folder / STATE)


class TaughtTrainerMixin(Base):
    """Adds a teacher's loss to that of a Trainer, and its log to the Trainer's: `class T(TaughtTrainerMixin, Trainer)`.

    peer: an `odist.Codistiller` or `odist.Distiller` of the Trainer's model; others: the Trainer's own

    What has the label -100 does not count, and of a causal language model what predicts it. The sum is divided as the label
    loss is: by the items of all accumulated batches where the Trainer counts them.
    """

    def __init__(self, *args: Any, peer: Taught, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer = peer
        self.add_callback(TaughtCallback(peer))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        given = {name: value for name, value in inputs.items() if name not in self.label_names}
        labels = inputs.get("labels")  # the Trainer may take it out
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            counted = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
            count = num_items_in_batch if counted else None
            logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[1]
            taught = self.peer.loss(
                logits, given, weights=_weights(labels, logits, causal=_is_causal(model)), count=count
            )
            if count is not None and self.args.average_tokens_across_devices:
                taught = taught * self.accelerator.num_processes  # the items are those of all processes
            loss = loss + taught
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # of training
            said = {name: value for name, value in self.peer.log().items() if isinstance(value, int | float)}
            logs = {**logs, **said}
        super().log(logs, *args, **kwargs)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _is_causal(model: nn.Module) -> bool:
    return type(unwrapped(model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _weights(labels: Tensor | None, logits: Tensor, *, causal: bool) -> Tensor | None:
    """Which predictions count; None: all of them."""
    if labels is None or labels.shape != logits.shape[:-1] or labels.is_floating_point():
        return None
    if causal:
        labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    return labels != IGNORED
