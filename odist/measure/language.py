"""Metrics of a language model: sums over tokens on the device, and results of stored predictions.

Cross-entropy in nats per token, perplexity, bits per byte.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from odist.measure.intervals import intervals_within_range, mean_interval
from odist.measure.scores import loss_of_correct


class LanguageMetrics:
    """Sums over tokens, kept where the logits are; only the sums ever leave the device.

    bytes_per_token: of the text that is evaluated, None where the tokens stand for no text
    """

    FIELDS = ("weight", "loss", "top1", "bayes_weight", "bayes_loss", "tokens")

    def __init__(self, *, bytes_per_token: float | None = None) -> None:
        self.bytes_per_token = bytes_per_token
        self.sums = torch.zeros(len(self.FIELDS), dtype=torch.float64)

    def update(self, logits: Tensor, targets: Tensor, weights: Tensor, *, bayes: Tensor | None = None) -> None:
        """Add a batch: logits [..., V], targets int64 [...], weights [...], bayes [...] optimal probabilities."""
        flat, labels, each = logits.detach().flatten(0, -2).float(), targets.flatten(), weights.flatten().double()
        loss = F.cross_entropy(flat, labels, reduction="none").double()
        correct = (flat.argmax(dim=-1) == labels).double()
        none = each.new_zeros(())
        optimal = (none, none)
        if bayes is not None:
            optimal = (each.sum(), -(each * bayes.flatten().double().log()).sum())
        sums = (each.sum(), (each * loss).sum(), (each * correct).sum(), *optimal, none + len(labels))
        self.sums = self.sums.to(flat.device) + torch.stack(sums)

    def totals(self) -> dict[str, np.ndarray]:
        return {"sums": self.sums.cpu().numpy()}

    def add(self, totals: dict[str, np.ndarray]) -> None:
        self.sums = self.sums.cpu() + torch.from_numpy(totals["sums"])

    def result(self) -> dict[str, Any]:
        """rows (tokens), cross_entropy (nats), perplexity, bits_per_byte, top1; excess_cross_entropy over the optimum
        where the generator knows it. None where there are no tokens."""
        sums = dict(zip(self.FIELDS, self.sums.tolist(), strict=True))
        result: dict[str, Any] = {"rows": int(sums["tokens"])}
        if sums["weight"] == 0:
            return result | dict.fromkeys(("cross_entropy", "perplexity", "bits_per_byte", "top1"))
        loss = sums["loss"] / sums["weight"]
        result |= {"cross_entropy": loss, "perplexity": _perplexity(loss), "top1": sums["top1"] / sums["weight"]}
        if self.bytes_per_token:
            result["bits_per_byte"] = loss / (math.log(2) * self.bytes_per_token)
        if sums["bayes_weight"] > 0:
            result["excess_cross_entropy"] = loss - sums["bayes_loss"] / sums["bayes_weight"]
        return result


def language_results(
    probabilities: np.ndarray,
    *,
    bytes_per_token: float | None = None,
    bayes: np.ndarray | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Metrics of the probability of each correct token, each with its interval under `<name>_interval`.

    probabilities, bayes: [lanes, tokens]
    Neighbouring tokens depend on each other, so the intervals are Student's over the means of the lanes.
    """
    loss = loss_of_correct(probabilities)
    mean, interval = _mean(loss, confidence)
    result = {
        "rows": int(loss.size),
        "cross_entropy": mean,
        "cross_entropy_interval": interval,
        "perplexity": _perplexity(mean),
        "perplexity_interval": interval and [_perplexity(bound) for bound in interval],
    }
    if bytes_per_token:
        scale = 1 / (math.log(2) * bytes_per_token)
        result |= {"bits_per_byte": mean * scale, "bits_per_byte_interval": interval and [b * scale for b in interval]}
    if bayes is not None:
        excess, interval = _mean(loss + np.log(bayes.astype(np.float64)), confidence)
        result |= {"excess_cross_entropy": excess, "excess_cross_entropy_interval": interval}
    return intervals_within_range(result)


def _mean(values: np.ndarray, confidence: float) -> tuple[float, list[float] | None]:
    return float(values.mean()), mean_interval(values.mean(axis=1).tolist(), confidence=confidence)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
