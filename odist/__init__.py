"""odist: online distillation (codistillation) and its baselines, in one training loop."""

__version__ = "0.1.0"
