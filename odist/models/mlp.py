"""Embeddings and a tower of fully connected ReLU layers: the paper's Criteo model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odist.models.compilable import Compilable


class EmbeddingMLP(Compilable):
    """Click model: one embedding table for all categorical columns, then a ReLU tower and one logit.

    num_numeric: width of the numeric input; num_categorical: categorical columns
    buckets: rows of the table; embedding_dim: its width; embedding_std: of its normal start
    hidden: widths of the ReLU layers
    dropout: probability after each hidden layer; compile: by torch.compile
    Source: Anil et al. 2018, section 3.1 (hidden 2560-1024-256, ReLU, logistic output); embedding
    width and initialisation are our choice: layers Kaiming, last layer and biases zero.
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
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=embedding_std)
        layers: list[nn.Module] = []
        width = num_numeric + num_categorical * embedding_dim
        for size in hidden:
            linear = nn.Linear(width, size)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = size
        self.tower = nn.Sequential(*layers)
        self.output = nn.Linear(width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.finish(compile=compile)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits [batch] of numeric float [batch, num_numeric] and ids int [batch, num_categorical]."""
        embedded = self.embedding(categorical).flatten(1)
        return self.output(self.tower(torch.cat([numeric, embedded], dim=1))).squeeze(1)
