"""A compact pre-norm Transformer decoder; it sees the tokens of one example and keeps no state from batch to batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odist.models.compilable import Compilable

ROTATION_BASE = 10_000.0


class Block(nn.Module):
    """Causal self-attention and a GELU layer of four times the width, each behind a layer norm.

    width: of the residual stream; heads: of the attention, each width / heads wide
    """

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_feed = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width, bias=False)
        self.feed_out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """The residual stream [batch, steps, width] after this block; rotation: see `rotations`."""
        batch, steps, width = values.shape
        projected = self.attention_in(self.norm_attention(values))
        query, key, value = projected.view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotate(query, rotation), rotate(key, rotation), value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(batch, steps, width)
        values = values + self.dropout(self.attention_out(attended))
        fed = F.gelu(self.feed_in(self.norm_feed(values)), approximate="tanh")
        return values + self.dropout(self.feed_out(fed))


def rotations(steps: int, width: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [steps, width / 2] of every position and frequency, on the device of `like`.

    Source: Su et al. 2021, "RoFormer", section 3.2.
    """
    frequency = ROTATION_BASE ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angle = torch.arange(steps, device=like.device, dtype=torch.float32)[:, None] * frequency
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(values: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (first half, second half) of the last dimension by each position's angles."""
    cosine, sine = rotation
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class Transformer(Compilable):
    """Language model: embedding, pre-norm blocks, layer norm, one softmax over the vocabulary.

    vocabulary: number of tokens; layers: blocks; width: of the residual stream; heads: divides width
    tied: the softmax uses the embedding's weights; dropout: on the embedding and on what each block adds
    compile: by torch.compile
    Sizes and initialisation (normal 0.02, what a block adds scaled by 1 / sqrt(2 layers)) are our choice, after GPT-2;
    the paper trains an LSTM only.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        layers: int,
        width: int,
        heads: int,
        tied: bool = True,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # A plain parameter: the table of a softmax gets dense gradients under every optimiser.
        self.embedding = nn.Parameter(torch.empty(vocabulary, width).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = None if tied else nn.Parameter(torch.empty(vocabulary, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.head_width = width // heads
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("_out.weight"):
                nn.init.normal_(parameter, std=0.02 * (2 * layers) ** -0.5)
            elif name.endswith("_in.weight"):
                nn.init.normal_(parameter, std=0.02)
        self.finish(compile=compile)

    def forward(self, tokens: Tensor, carry: None = None) -> tuple[Tensor, None]:
        """Logits [batch, steps, vocabulary] of tokens int64 [batch, steps]; there is no state to carry."""
        values = self.dropout(F.embedding(tokens, self.embedding))
        rotation = rotations(tokens.shape[1], self.head_width, like=values)
        for block in self.blocks:
            values = block(values, rotation)
        return F.linear(self.norm(values), self.embedding if self.output is None else self.output), None
