"""Image classification on a prepared image store, or on synthetic images.

Source: Anil et al. 2018, section 3.1, which follows Goyal et al. 2017. A training image is cropped and flipped at
random by (seed, group, epoch, image), so neither the batch nor the number of workers changes what it looks like;
groups that read identical rows see identical crops.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.schema import JPEG_SIZE, Config, ImageNetConfig
from odist.data.order import ShuffledOrder
from odist.errors import UserError
from odist.losses import LossOptions, Soft, Sums, multiclass
from odist.measure.images import ImageMetrics, image_results
from odist.rng import derive
from odist.tasks.base import Batch, Carry
from odist.tasks.rows import PreparedRows, RowSource, RowTask, SyntheticRows
from odist.tasks.synthetic_images import CLASSES, SyntheticImages

SYNTHETIC_SIZE = 32  # pixels a side, where `task.size` says nothing

Images = tuple[np.ndarray, np.ndarray]


class Source(RowSource, Protocol):
    """Images and classes int64 [n], by number; `seed` crops them at random.

    Images are float32 [n, 3, size, size] as a network takes them, or uint8 [n, size, size, 3] that are still to be normalised.
    """

    num_classes: int

    def images(self, rows: np.ndarray, split: str, *, seed: int | None = None) -> Images: ...

    def prior(self) -> np.ndarray: ...


class AugmentedOrder:
    """The rows of an order, each beside the seed of its epoch's augmentation: int64 [examples per step, 2]."""

    def __init__(self, order: ShuffledOrder) -> None:
        self.order = order

    def ids(self, step: int) -> np.ndarray:
        rows = self.order.ids(step)
        epochs = (step * len(rows) + np.arange(len(rows))) // self.order.num_rows
        seeds = {epoch: derive(self.order.seed, "augmentation", step=epoch) for epoch in set(epochs.tolist())}
        return np.stack([rows, np.array([seeds[epoch] for epoch in epochs.tolist()], dtype=np.int64)], axis=1)


class ImageNetTask(RowTask):
    """The image task; see `odist.tasks.base.Task` for the methods."""

    main_metric = "cross_entropy"

    def __init__(self, config: Config) -> None:
        synthetic = config.data.name == "synthetic"
        self.source: Source = SyntheticSource(config) if synthetic else PreparedSource(config)
        super().__init__(config, self.source)
        self.loss_options = LossOptions.of(config.algorithm)

    def build_model(self) -> nn.Module:
        options = {key: value for key, value in asdict(self.config.model).items() if key != "name"}
        model: nn.Module = registry.find("models", self.config.model.name)(self.source.num_classes, **options)
        return model

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> AugmentedOrder:
        if self.num_rows("validation") == 0:
            raise UserError(
                f"data.path={self.config.data.path}: there is no image to evaluate. Prepare the store with "
                "validation images."
            )
        return AugmentedOrder(
            self.shuffled(group=group, num_groups=num_groups, examples_per_step=examples_per_step, seed=seed)
        )

    def batch(self, ids: np.ndarray, split: str) -> Batch:
        """Images by row number [n], as they are evaluated, or by number and augmentation [n, 2], as they are learnt."""
        if ids.ndim == 1:
            images, classes = self.source.images(ids, split)
        else:
            seeds = list(dict.fromkeys(ids[:, 1].tolist()))  # of one epoch, or of two where the one ends
            parts = [self.source.images(ids[ids[:, 1] == own, 0], split, seed=own) for own in seeds]
            images, classes = (np.concatenate(each) if len(seeds) > 1 else each[0] for each in zip(*parts, strict=True))
        return batch_of(images, classes)

    def forward(self, model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return model(*batch.inputs), None

    def loss(self, logits: Tensor, batch: Batch, soft: Soft | None = None) -> Sums:
        return multiclass(logits, batch.targets, weights=batch.weights, options=self.loss_options, soft=soft)

    def metrics(self) -> ImageMetrics:
        return ImageMetrics()

    def probabilities(self, logits: Tensor, batch: Batch) -> Tensor:
        return torch.softmax(logits, dim=-1)

    def results(
        self, probabilities: np.ndarray, targets: np.ndarray, *, bayes: np.ndarray | None, split: str
    ) -> dict[str, Any]:
        return image_results(probabilities, targets)

    def prior(self) -> Tensor:
        return torch.from_numpy(self.source.prior()).float()


def batch_of(images: np.ndarray, classes: np.ndarray) -> Batch:
    """A batch of images as a source has them; see `Source`."""
    finish = _normalised if images.dtype == np.uint8 else None
    return Batch((torch.from_numpy(images),), torch.from_numpy(classes), torch.ones(len(classes)), finish=finish)


def _normalised(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    from odist.data.augment import normalise

    return tuple(normalise(images) for images in inputs)


class SyntheticSource(SyntheticRows):
    """Images of the generator. They are endless, so none is cropped: more of them take the place of augmentation."""

    num_classes = len(CLASSES)

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, ImageNetConfig)
        options, size = config.task.synthetic, config.task.size or SYNTHETIC_SIZE
        super().__init__("synthetic-images-1", options, config.data, shown=[size])
        self.generator = SyntheticImages(options, seed=config.data.seed, size=size)

    def images(self, rows: np.ndarray, split: str, *, seed: int | None = None) -> Images:
        return self.generator.images(rows, self.drawn(split))

    def prior(self) -> np.ndarray:
        return np.full(self.num_classes, 1 / self.num_classes)


class PreparedSource(PreparedRows):
    """Images of a store made by `odist prepare imagenet`."""

    def __init__(self, config: Config) -> None:
        from odist.data.images import ImageStore

        assert isinstance(config.task, ImageNetConfig)
        self.options = config.task
        self.store = ImageStore.open(Path(str(config.data.path)))
        num_validation = self.store.num_rows("validation") if "validation" in self.store.splits else 0
        super().__init__(
            config.data,
            train=self.store.num_rows("train"),
            validation=num_validation,
            fingerprint=self.store.fingerprint,
            fitted_fingerprint=self.store.fitted_fingerprint,
            most_tuning=num_validation,
        )
        self.size = self.options.size or self.store.decoded or JPEG_SIZE
        self.num_classes = len(self.store.classes)

    def images(self, rows: np.ndarray, split: str, *, seed: int | None = None) -> Images:
        from odist.data.augment import evaluation_batch, train_batch

        rows, split = self.stored(rows, split)
        labels = np.asarray(self.store.labels(split)[rows], dtype=np.int64)
        how: dict[str, Any] = {"split": split, "size": self.size, "num_threads": self.options.threads or 1}
        how["decoder"] = self.options.decoder
        if seed is None:
            return evaluation_batch(self.store, rows, **how), labels
        return train_batch(self.store, rows, seed=seed, crop=self.options.crop, **how), labels

    def prior(self) -> np.ndarray:
        read = slice(self.first_row, self.first_row + self.train_rows)
        counts = np.bincount(self.store.labels("train")[read], minlength=self.num_classes)
        return counts / counts.sum()
