"""Embeddings and a tower of fully connected ReLU layers: the paper's Criteo model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odist.models.compilable import Compilable


class EmbeddingMLP(Compilable):
    """Click model: one embedding table for all categorical columns, then a ReLU tower and a logit for each label.

    num_numeric: width of the numeric input; num_categorical: categorical columns
    buckets: rows of the table; embedding_dim: its width; embedding_std: of its normal start
    hidden: widths of the ReLU layers
    dropout: probability after each hidden layer; compile: by torch.compile; labels: logits of a row
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
        labels: int = 1,
    ) -> None:
        super().__init__()
        self.embedding = embedding_table(buckets, embedding_dim, std=embedding_std)
        width = num_numeric + num_categorical * embedding_dim
        self.tower = relu_tower(width, hidden, dropout=dropout)
        self.output = zero_linear(hidden[-1] if hidden else width, labels)
        self.finish(compile=compile)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits [batch], of several labels [batch, labels].

        numeric: float [batch, num_numeric]; categorical: ids, int [batch, num_categorical]
        """
        embedded = self.embedding(categorical).flatten(1)
        return logits_of(self.output(self.tower(torch.cat([numeric, embedded], dim=1))))


def embedding_table(rows: int, width: int, *, std: float) -> nn.Embedding:
    """A table with a normal start of deviation `std`."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=std)
    return table


def relu_tower(width: int, hidden: list[int], *, dropout: float) -> nn.Sequential:
    """Fully connected ReLU layers, Kaiming with zero biases. width: of the input; hidden: of the layers"""
    layers: list[nn.Module] = []
    for size in hidden:
        linear = nn.Linear(width, size)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)


def zero_linear(width: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A last layer that starts at zero."""
    linear = nn.Linear(width, outputs, bias=bias)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


def logits_of(outputs: Tensor) -> Tensor:
    """Outputs [batch, labels] as logits: [batch] of one label."""
    return outputs.squeeze(1) if outputs.shape[1] == 1 else outputs
