"""Metrics of an image classifier: top-1 and top-5 accuracy, cross-entropy in nats and calibration.

The sums are those of odist.measure.metrics.
"""

from __future__ import annotations

from typing import Any

from odist.measure.exact import multiclass_results
from odist.measure.metrics import MulticlassMetrics


class ImageMetrics(MulticlassMetrics):
    """Sums over images, from logits [n, classes]."""

    def update(self, logits: Any, targets: Any, weights: Any = None, *, bayes: Any = None) -> None:
        """Add a batch: logits [n, classes], targets int64 [n], weights [n]; no optimum is known, so `bayes` is None."""
        super().update(logits, targets, weights)

    def result(self) -> dict[str, Any]:
        """cross_entropy, top1, top5, calibration_error (15 bins) of the top class, rows. None without rows."""
        return _of_images(super().result())


def image_results(probabilities: Any, targets: Any, *, confidence: float = 0.95) -> dict[str, Any]:
    """Metrics of probabilities [n, classes] and classes [n], with intervals over images under `<name>_interval`."""
    return _of_images(multiclass_results(probabilities, targets, confidence=confidence))


def _of_images(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without the perplexity, which is a measure of texts."""
    return {name: value for name, value in metrics.items() if not name.startswith("perplexity")}
