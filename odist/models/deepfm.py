"""DeepFM: a factorisation machine and a deep network over the same embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odist.models.compilable import Compilable
from odist.models.mlp import embedding_table, logits_of, relu_tower, zero_linear


class DeepFM(Compilable):
    """Click model: the sum of first-order weights, of all pairs' inner products and of a ReLU tower.

    Arguments as of `EmbeddingMLP`. A number x has the embedding x v with a v of its own, as in a factorisation machine;
    the tower gets x itself, of which x v is a linear function. With several labels the pairs are weighed for each of
    them: <h, sum over pairs of the elementwise products>; of one label h is 1, as in the paper.
    Source: Guo et al. 2017, "DeepFM: a factorization-machine based neural network for CTR prediction", equations 1 to 4.
    """

    def __init__(
        self,
        num_numeric: int,
        num_categorical: int,
        *,
        buckets: int,
        embedding_dim: int,
        hidden: list[int],
        embedding_std: float = 0.05,
        dropout: float = 0.0,
        compile: bool = False,
        labels: int = 1,
    ) -> None:
        super().__init__()
        self.embedding = embedding_table(buckets, embedding_dim, std=embedding_std)
        self.first_order = embedding_table(buckets, labels, std=0.0)
        self.numeric_factors = nn.Parameter(torch.empty(num_numeric, embedding_dim).normal_(std=embedding_std))
        self.numeric_first_order = nn.Parameter(torch.zeros(num_numeric, labels))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.pairs = zero_linear(embedding_dim, labels, bias=False) if labels > 1 else None
        width = num_numeric + num_categorical * embedding_dim
        self.tower = relu_tower(width, hidden, dropout=dropout)
        self.output = zero_linear(hidden[-1] if hidden else width, labels, bias=False)
        self.finish(compile=compile)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits; as of `EmbeddingMLP`."""
        embedded = self.embedding(categorical)
        linear = self.bias + numeric @ self.numeric_first_order + self.first_order(categorical).sum(dim=1)
        total = embedded.sum(dim=1) + numeric @ self.numeric_factors
        squares = (embedded * embedded).sum(dim=1) + (numeric * numeric) @ (self.numeric_factors * self.numeric_factors)
        products = 0.5 * (total * total - squares)
        second = products.sum(dim=1, keepdim=True) if self.pairs is None else self.pairs(products)
        deep = self.output(self.tower(torch.cat([numeric, embedded.flatten(1)], dim=1)))
        return logits_of(linear + second + deep)
