"""Which devices this machine has; asked of torch, and only where something else than the CPU is wanted."""

from __future__ import annotations

from odist.errors import UserError


def available(device: str) -> bool:
    """Whether torch can compute on `device` (cpu or cuda) here."""
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


def require(device: str, *, asked: str, instead: str) -> None:
    """Raise UserError unless torch can compute on `device` here.

    asked, instead: what was typed and what to type, for the message
    """
    if not available(device):
        import torch

        why = "sees no CUDA device here" if torch.backends.cuda.is_built() else "was built without CUDA"
        raise UserError(f"{asked}: torch {torch.__version__} {why}. Type {instead}.")
