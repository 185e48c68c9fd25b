"""A task and a model of another package: two half moons, learnt by a network of one layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.key import POSITIVE, key
from odist.config.schema import Config, ModelConfig, TaskConfig
from odist.data.order import Order, SequentialOrder, Shares
from odist.losses import LossOptions, Soft, Sums, binary
from odist.measure.exact import binary_results
from odist.measure.metrics import BinaryMetrics
from odist.tasks.base import Batch, Carry


class Tiny(nn.Module):
    """One hidden layer."""

    @dataclass
    class Config(ModelConfig):
        name: str = "tiny"
        hidden: int = key(8, "units of the layer", bounds=POSITIVE)

    def __init__(self, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, 1))

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)[:, 0]


class Moons:
    """Which of two half moons a point belongs to."""

    @dataclass
    class Config(TaskConfig):
        name: str = "moons"
        rows: int = key(2_000, "training points of one pass", bounds=POSITIVE)
        noise: float = key(0.1, "standard deviation of a point from its moon", bounds=POSITIVE)

    DEFAULTS = {"model": "tiny", "optim": "sgd"}  # noqa: RUF012
    main_metric = "log_loss"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fingerprint = self.fitted_fingerprint = f"moons-{config.data.seed}-{config.task.noise}"
        self.loss_options = LossOptions.of(config.algorithm)

    def build_model(self) -> nn.Module:
        options = {name: value for name, value in asdict(self.config.model).items() if name != "name"}
        return registry.find("models", self.config.model.name)(**options)

    def num_rows(self, split: str) -> int:
        return self.config.task.rows if split == "train" else 200

    def _shares(self) -> Shares:
        data = self.config.data
        return Shares(data.partition, data.parts, data.seed, rows=self.num_rows("train"), streams=False)

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> Order:
        return self._shares().order(group=group, num_groups=num_groups, examples_per_step=examples_per_step, seed=seed)

    def distinct_rows(self, *, num_groups: int, examples: int) -> int:
        return self._shares().distinct(num_groups=num_groups, examples=examples)

    def evaluation_order(self, split: str, *, rows: int | None, batch_size: int) -> SequentialOrder:
        total = self.num_rows(split)
        return SequentialOrder(min(rows or total, total), batch_size)

    def batch(self, ids: np.ndarray, split: str) -> Batch:
        points = np.stack([self._point(int(number), split) for number in ids])
        labels = torch.tensor([float(number % 2) for number in ids])
        return Batch((torch.from_numpy(points),), labels, torch.ones(len(ids)))

    def _point(self, number: int, split: str) -> np.ndarray:
        random = np.random.default_rng([self.config.data.seed, split == "train", number])
        angle, upper = np.pi * random.random(), number % 2 == 0
        moon = (np.cos(angle), np.sin(angle)) if upper else (1 - np.cos(angle), 0.5 - np.sin(angle))
        return (np.array(moon) + self.config.task.noise * random.normal(size=2)).astype(np.float32)

    def forward(self, model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return model(*batch.inputs), None

    def loss(self, logits: Tensor, batch: Batch, soft: Soft | None = None) -> Sums:
        return binary(logits, batch.targets, weights=batch.weights, options=self.loss_options, soft=soft)

    def metrics(self) -> BinaryMetrics:
        return BinaryMetrics()

    def probabilities(self, logits: Tensor, batch: Batch) -> Tensor:
        return torch.sigmoid(logits)

    def results(
        self, probabilities: np.ndarray, targets: np.ndarray, *, bayes: np.ndarray | None, split: str
    ) -> dict[str, Any]:
        return binary_results(probabilities, targets, bayes=bayes)

    def prior(self) -> Tensor:
        return torch.tensor(0.5)
