"""Image classification on a prepared image store, or on synthetic images.

Source: Anil et al. 2018, section 3.1, which follows Goyal et al. 2017. A training image is cropped and flipped at
random by (seed, group, epoch, image), so neither the batch nor the number of workers changes what it looks like;
groups that read identical rows see identical crops. Crops are data/augment.py's, files data/images.py's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.schema import JPEG_SIZE, Config, ImageNetConfig
from odist.data.order import SequentialOrder, Shares, ShuffledOrder
from odist.errors import UserError
from odist.losses import LossOptions, Soft, Sums, multiclass
from odist.measure.images import ImageMetrics, image_results
from odist.rng import derive
from odist.tasks.base import Batch, Carry
from odist.tasks.synthetic_images import CLASSES, SyntheticImages

TUNING_SHARE = 8  # data.holdout=tuning: at most the last 1/8 of the training images is evaluated and not trained on
SYNTHETIC_SIZE = 32  # pixels a side, where `task.size` says nothing

Images = tuple[np.ndarray, np.ndarray]


class Source(Protocol):
    """Images float32 [n, 3, size, size] and classes int64 [n], by number; `seed` crops them at random."""

    fingerprint: str
    fitted_fingerprint: str
    num_classes: int
    streams: bool  # whether disjoint parts lie one after another instead of sharing the rows

    def num_rows(self, split: str) -> int: ...

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


class ImageNetTask:
    """The image task; see `odist.tasks.base.Task` for the methods."""

    main_metric = "cross_entropy"

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, ImageNetConfig)
        self.config = config
        synthetic = config.data.name == "synthetic"
        self.source: Source = SyntheticSource(config) if synthetic else PreparedSource(config)
        self.fingerprint = self.source.fingerprint
        self.fitted_fingerprint = self.source.fitted_fingerprint
        self.loss_options = LossOptions.of(config.algorithm)

    def build_model(self) -> nn.Module:
        options = {key: value for key, value in asdict(self.config.model).items() if key != "name"}
        model: nn.Module = registry.find("models", self.config.model.name)(self.source.num_classes, **options)
        return model

    def num_rows(self, split: str) -> int:
        return self.source.num_rows(split)

    def _shares(self) -> Shares:
        data = self.config.data
        return Shares(data.partition, data.parts, data.seed, rows=self.num_rows("train"), streams=self.source.streams)

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> AugmentedOrder:
        if self.num_rows("validation") == 0:
            raise UserError(f"data.path={self.config.data.path}: there is no image to evaluate. Prepare the store with "
                            "validation images.")  # fmt: skip
        return AugmentedOrder(
            self._shares().order(group=group, num_groups=num_groups, examples_per_step=examples_per_step, seed=seed)
        )

    def distinct_rows(self, *, num_groups: int, examples: int) -> int:
        return self._shares().distinct(num_groups=num_groups, examples=examples)

    def evaluation_order(self, split: str, *, rows: int | None, batch_size: int) -> SequentialOrder:
        total = self.num_rows(split)
        return SequentialOrder(min(rows or total, total), batch_size)

    def batch(self, ids: np.ndarray, split: str, seed: int) -> Batch:
        """Images by row number [n], as they are evaluated, or by number and augmentation [n, 2], as they are learnt.

        `seed` is of the step, which would give an image another crop at another batch size, so it is not used.
        """
        if ids.ndim == 1:
            images, classes = self.source.images(ids, split)
        else:
            seeds = list(dict.fromkeys(ids[:, 1].tolist()))  # of one epoch, or of two where the one ends
            parts = [self.source.images(ids[ids[:, 1] == own, 0], split, seed=own) for own in seeds]
            images, classes = (np.concatenate(each) if len(seeds) > 1 else each[0] for each in zip(*parts, strict=True))
        return Batch((torch.from_numpy(images),), torch.from_numpy(classes), torch.ones(len(classes)))

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


class SyntheticSource:
    """Images of the generator; `rows` of a pass and as many more for every further disjoint stream.

    They are endless, so nothing is cropped: more of them takes the place of augmentation.
    """

    streams = True
    num_classes = len(CLASSES)

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, ImageNetConfig)
        self.options = config.task.synthetic
        self.holdout = config.data.holdout
        self.train_rows = min(self.options.rows, config.data.max_rows or self.options.rows)
        size = config.task.size or SYNTHETIC_SIZE
        self.generator = SyntheticImages(self.options, seed=config.data.seed, size=size)
        # Without the number of training rows: more of one stream is the same data, evaluated on the same rows.
        made_by = {key: value for key, value in asdict(self.options).items() if key != "rows"}
        named = json.dumps(["synthetic-images-1", config.data.seed, self.holdout, size, made_by], sort_keys=True)
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()
        del made_by["validation_rows"]  # neither which images are evaluated nor their size changes the classes
        fitted = json.dumps(["synthetic-images-1", config.data.seed, made_by], sort_keys=True)
        self.fitted_fingerprint = hashlib.sha256(fitted.encode()).hexdigest()

    def num_rows(self, split: str) -> int:
        return self.train_rows if split == "train" else self.options.validation_rows

    def images(self, rows: np.ndarray, split: str, *, seed: int | None = None) -> Images:
        return self.generator.images(rows, split if split == "train" else self.holdout)

    def prior(self) -> np.ndarray:
        return np.full(self.num_classes, 1 / self.num_classes)


class PreparedSource:
    """Images of a store made by `odist prepare imagenet`."""

    streams = False

    def __init__(self, config: Config) -> None:
        from odist.data.images import ImageStore

        assert isinstance(config.task, ImageNetConfig)
        data, self.options = config.data, config.task
        self.store = ImageStore.open(Path(str(data.path)))
        self.size = self.options.size or self.store.decoded or JPEG_SIZE
        self.num_classes = len(self.store.classes)
        self.fingerprint, self.fitted_fingerprint = self.store.fingerprint, self.store.fitted_fingerprint
        self.tuning = data.holdout == "tuning"
        if self.tuning:  # other images are evaluated
            self.fingerprint = hashlib.sha256(f"{self.fingerprint} tuning".encode()).hexdigest()
        kept = whole = self.store.num_rows("train")
        if self.tuning:  # as many as validation has, where that is not too many
            kept = whole - max(1, min(whole // TUNING_SHARE, self._num_validation()))
        self.tuning_start = kept
        self.train_rows = min(kept, data.max_rows or kept)

    def _num_validation(self) -> int:
        return self.store.num_rows("validation") if "validation" in self.store.splits else 0

    def num_rows(self, split: str) -> int:
        if split == "train":
            return self.train_rows
        return self.store.num_rows("train") - self.tuning_start if self.tuning else self._num_validation()

    def images(self, rows: np.ndarray, split: str, *, seed: int | None = None) -> Images:
        from odist.data.augment import evaluation_batch, train_batch

        if split == "validation" and self.tuning:
            rows, split = rows + self.tuning_start, "train"
        labels = np.asarray(self.store.labels(split)[rows], dtype=np.int64)
        how: dict[str, Any] = {"split": split, "size": self.size, "num_threads": self.options.threads}
        how["decoder"] = self.options.decoder
        if seed is None:
            return evaluation_batch(self.store, rows, **how), labels
        return train_batch(self.store, rows, seed=seed, crop=self.options.crop, **how), labels

    def prior(self) -> np.ndarray:
        counts = np.bincount(self.store.labels("train")[: self.train_rows], minlength=self.num_classes)
        return counts / counts.sum()
