"""A classifier of handwritten digits, trained by pytorch-lightning's Trainer, alone or with a peer.

The digits are those that scikit-learn comes with; 300 of them are learnt, so there is no download and not much to learn from.

    python examples/lightning_module.py                                               # one model
    python examples/lightning_module.py --url out/digits --group 0 & python examples/lightning_module.py --url out/digits --group 1

What a peer gives here over five seeds: reports/examples, by compare.py.

Needs `pip install 'odist[lightning]' scikit-learn`.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from odist.integrations.lightning import Codistillation


class Classifier(LightningModule):
    """Two hidden layers; `peer` is set by the callback."""

    peer = None

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []  # of the evaluations so far
        self.network = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        if self.peer is not None:
            loss = loss + self.peer.loss(logits, x)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log_dict(
            {
                "validation_loss": F.cross_entropy(logits, y),
                "validation_error": (logits.argmax(dim=1) != y).float().mean(),
            }
        )

    def on_validation_epoch_end(self) -> None:
        self.losses.append(float(self.trainer.callback_metrics["validation_loss"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def rows() -> tuple[TensorDataset, TensorDataset]:
    """300 digits to learn, the others to validate."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return TensorDataset(x[order[:300]], y[order[:300]]), TensorDataset(x[order[300:]], y[order[300:]])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", help="folder or URL of the peers; without it one model is trained")
    parser.add_argument("--group", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(10 * given.seed + given.group, verbose=False)
    train, validation = rows()
    callbacks = []
    if given.url is not None:
        callbacks = [
            Codistillation(
                url=given.url, group=given.group, peers=[1 - given.group], every=20, burn_in=given.steps // 10, poll=0.1
            )
        ]
    trainer = Trainer(
        max_steps=given.steps,
        check_val_every_n_epoch=5,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    held_out = DataLoader(validation, batch_size=512)
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True), held_out)
    teachers = {name: float(value) for name, value in trainer.callback_metrics.items() if "teacher" in name}
    trainer.validate(model, held_out, verbose=False)
    print(json.dumps({"validation_loss": model.losses[-1], "lowest_validation_loss": min(model.losses), **teachers}))


if __name__ == "__main__":
    main()
