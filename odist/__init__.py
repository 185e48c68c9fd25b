"""odist: online distillation (codistillation) beside its rivals, in one training loop."""

__version__ = "0.1.0"
