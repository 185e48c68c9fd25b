"""odist: online distillation (codistillation) and its baselines, in one training loop or in your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odist.measure.release import churn
    from odist.own_loop.codistiller import Codistiller
    from odist.own_loop.distiller import Distiller

__version__ = "0.1.0"
__all__ = ["Codistiller", "Distiller", "__version__", "churn"]

# Imported when used: torch takes seconds.
_PLACES = {
    "Codistiller": "odist.own_loop.codistiller",
    "Distiller": "odist.own_loop.distiller",
    "churn": "odist.measure.release",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'odist' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
