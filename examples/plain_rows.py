"""The rows that the examples learn, made here."""

import torch


def make_rows(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 32 numbers and their class, one of ten, which a third of the rows has wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 32, generator=generator)
    truth = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    y = (x @ truth + (x @ truth.roll(1, 0)) * x[:, :1]).argmax(dim=1)
    wrong = torch.rand(count, generator=generator) < 1 / 3
    return x, torch.where(wrong, torch.randint(10, (count,), generator=generator), y)
