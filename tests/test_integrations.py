"""Codistillation in the Trainers of transformers and pytorch-lightning: the real ones, for a few steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import odist

VOCABULARY, LENGTH = 16, 8


def tokens(*, seed: int, count: int = 32) -> Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def language_model(*, seed: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def offer(model: nn.Module, url: Path) -> None:
    """Let group 1 publish a model, as a peer that has ended."""
    with odist.Codistiller(model, url=str(url), group=1, peers=[0], every=1) as other:
        other.step()


def wait_for(peer: odist.Codistiller) -> None:
    deadline = time.monotonic() + 60
    while not peer.exchange.fetch(1):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_transformers_trainer_hears_a_peer_and_continues_from_its_checkpoint(tmp_path: Path) -> None:
    import transformers

    from odist.integrations.transformers import TaughtTrainerMixin

    class TaughtTrainer(TaughtTrainerMixin, transformers.Trainer):  # type: ignore[misc, name-defined]
        losses: list[float]

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            found = super().training_step(*args, **kwargs)
            self.losses = [*getattr(self, "losses", []), float(found)]
            return found

    theirs, ids = language_model(seed=2), tokens(seed=1)
    labels = ids.clone()
    labels[:, :3] = -100
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    offer(theirs, tmp_path / "pair")

    def train(steps: int, *, resume: bool) -> Any:
        model = language_model(seed=1)
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"), max_steps=steps, per_device_train_batch_size=16, report_to=[],
            gradient_accumulation_steps=2, logging_steps=1, save_steps=1, use_cpu=True, disable_tqdm=True,
            learning_rate=1e-3,
        )  # fmt: skip
        with odist.Codistiller(model, url=str(tmp_path / "pair"), group=0, peers=[1], every=1, poll=0.01) as peer:
            wait_for(peer)
            trainer = TaughtTrainer(model=model, args=args, train_dataset=rows, peer=peer)
            trainer.train(resume_from_checkpoint=resume)
            assert peer.steps == steps
        return trainer

    trainer = train(1, resume=False)
    logits = language_model(seed=1)(ids).logits[:, 2:-1].flatten(0, 1)
    alone = F.cross_entropy(logits, ids[:, 3:].flatten())
    assert sum(trainer.losses) == pytest.approx(float(alone.detach()), rel=1e-5)  # no teacher before the first reload
    trainer = train(2, resume=True)
    student = language_model(seed=1)
    student.load_state_dict(
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "trainer" / "checkpoint-1").state_dict()
    )
    with torch.no_grad():
        logits = student(ids).logits[:, 2:-1].flatten(0, 1)
        soft = theirs(ids).logits[:, 2:-1].flatten(0, 1).softmax(-1)
    both = F.cross_entropy(logits, ids[:, 3:].flatten()) + F.cross_entropy(logits, soft)
    assert sum(trainer.losses) == pytest.approx(float(both), rel=1e-4)
    assert trainer.state.log_history[-2]["num_teachers"] == 1


def test_lightning_callback_teaches_counts_optimizer_steps_and_is_saved(tmp_path: Path) -> None:
    import pytorch_lightning as lightning

    from odist.integrations.lightning import Codistillation

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        peer: odist.Codistiller | None = None

        def __init__(self, *, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.network = nn.Linear(4, 3)
            self.taught: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            assert self.peer is not None
            if not self.taught:
                wait_for(self.peer)
            logits = self(batch[0])
            extra = self.peer.loss(logits, batch[0])
            self.taught.append(float(extra.detach()))
            return F.cross_entropy(logits, batch[1]) + extra

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(32) % 3), batch_size=8)
    offer(Module(seed=2), tmp_path / "pair")

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Any, Any]:
        callback = Codistillation(url=str(tmp_path / "pair"), group=0, peers=[1], every=1, poll=0.01)
        trainer = lightning.Trainer(
            max_steps=steps, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=2, log_every_n_steps=1,
        )  # fmt: skip
        module = Module(seed=1)
        trainer.fit(module, rows, ckpt_path=checkpoint)
        return trainer, module

    trainer, module = fit(2)
    assert [loss > 0 for loss in module.taught] == [False, False, True, True]  # from the first optimiser step on
    assert module.peer is None
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert float(trainer.callback_metrics["num_teachers"]) == 1
    _, module = fit(3, tmp_path / "saved.ckpt")
    assert module.taught[0] > 0  # the teacher was in the checkpoint
