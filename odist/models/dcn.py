"""DCN V2: cross layers, which multiply what they have with the input once more each, and a deep network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odist.models.compilable import Compilable
from odist.models.mlp import embedding_table, logits_of, relu_tower, zero_linear


class CrossLayer(nn.Module):
    """x0 * (W x + b) + x, with W = U V^T of rank `rank`; None: any W.

    Source: Wang et al. 2021, equations 1 and 2; the start is our choice: Xavier, bias zero.
    """

    def __init__(self, width: int, *, rank: int | None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(width if rank is None else rank, width)
        for linear in (self.down, self.up):
            if linear is not None:
                nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """The next x [batch, width]; first: x0 [batch, width]."""
        return first * self.up(x if self.down is None else self.down(x)) + x


class DCNV2(Compilable):
    """Click model: cross layers over numbers and embeddings, and a ReLU tower behind or beside them.

    Arguments as of `EmbeddingMLP`, and
    cross_layers: their number; rank: of their matrices, None: full
    structure: `stacked`, the tower reads what the cross layers give; `parallel`, both read the input and are joined
    Source: Wang et al. 2021, "DCN V2: improved deep & cross network", sections 3.1 to 3.4.
    """

    def __init__(
        self,
        num_numeric: int,
        num_categorical: int,
        *,
        buckets: int,
        embedding_dim: int,
        hidden: list[int],
        cross_layers: int = 3,
        rank: int | None = None,
        structure: str = "stacked",
        embedding_std: float = 0.05,
        dropout: float = 0.0,
        compile: bool = False,
        labels: int = 1,
    ) -> None:
        super().__init__()
        self.stacked = structure == "stacked"
        self.embedding = embedding_table(buckets, embedding_dim, std=embedding_std)
        width = num_numeric + num_categorical * embedding_dim
        self.cross = nn.ModuleList(CrossLayer(width, rank=rank) for _ in range(cross_layers))
        self.tower = relu_tower(width, hidden, dropout=dropout)
        deep = hidden[-1] if hidden else width
        self.output = zero_linear(deep if self.stacked else deep + width, labels)
        self.finish(compile=compile)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits; as of `EmbeddingMLP`."""
        first = crossed = torch.cat([numeric, self.embedding(categorical).flatten(1)], dim=1)
        for layer in self.cross:
            crossed = layer(first, crossed)
        if self.stacked:
            return logits_of(self.output(self.tower(crossed)))
        return logits_of(self.output(torch.cat([crossed, self.tower(first)], dim=1)))
