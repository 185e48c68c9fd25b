"""Soft targets of the likeliest classes alone, for large vocabularies: top-k and top-p, renormalised over what is kept.

A class that is dropped has the logit minus infinity, so its probability is 0 and a softmax over the rest renormalises. Every
teacher is cut on its own, before several are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from odist.errors import UserError
from odist.tasks.base import Task
from odist.teachers import ModelOptions


@dataclass(frozen=True)
class Kept:
    """Which classes of a prediction are kept.

    top_k: so many of the likeliest; top_p: then as few of those as have this share of their probability together; None: all
    temperature: divides the logits whose probabilities count for top_p
    Source of top_p: Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1.
    """

    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, options: ModelOptions, task: Task) -> Kept | None:
        """What a teacher's options say; None where all classes are kept.

        Raises UserError for binary predictions, which have no classes to choose from.
        """
        if options.top_k is None and options.top_p is None:
            return None
        if task.prior().ndim == 0:
            raise UserError(
                "algorithm.top_k and algorithm.top_p keep some of many classes; this task predicts one number. Leave them out."
            )
        return cls(options.top_k, options.top_p, options.temperature)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [batch, ..., classes] with minus infinity for classes that are dropped."""
        count = min(self.top_k or logits.shape[-1], logits.shape[-1])
        values, classes = logits.topk(count, dim=-1)
        if self.top_p is not None:
            shares = torch.softmax(values / self.temperature, dim=-1)
            before = shares.cumsum(dim=-1) - shares  # of those that are likelier: nothing for the first, which is kept
            values = values.masked_fill(before >= self.top_p, -math.inf)
        return torch.full_like(logits, -math.inf).scatter_(-1, classes, values)


def pack(logits: Tensor, *, cut: bool) -> Tensor:
    """Logits [..., classes] as bytes to send; of cut ones what is kept: each row's count, then classes and logits."""
    if not cut:
        return as_bytes(logits)
    rows = logits.flatten(0, -2)
    mask = rows != -math.inf
    classes = mask.nonzero()[:, 1]
    return torch.cat(
        [as_bytes(mask.sum(dim=1).to(torch.int32)), as_bytes(classes.to(torch.int32)), as_bytes(rows[mask])]
    )


def unpack(content: Tensor, *, like: Tensor, cut: bool) -> Tensor:
    """What `pack` made of logits of the shape and type of `like`."""
    if not cut:
        return content.view(like.dtype).view(like.shape)
    rows = like.new_full((like.shape[:-1].numel(), like.shape[-1]), -math.inf)
    counts, rest = content[: 4 * len(rows)].view(torch.int32), content[4 * len(rows) :]
    total = int(counts.sum())
    classes, values = rest[: 4 * total].clone().view(torch.int32), rest[4 * total :].clone().view(like.dtype)
    number = torch.repeat_interleave(torch.arange(len(rows), device=like.device), counts)
    rows[number, classes.long()] = values
    return rows.view(like.shape)


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 [n]."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)
