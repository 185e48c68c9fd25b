"""What a report says of each metric: its name, the label of its axis, its unit, and whether higher is better.

It has the one list of the metrics for which higher is better.
"""

from __future__ import annotations

CHURN = "mean_abs_difference"  # between retrains of one system
AGAINST = "against_"  # begins the measures of churn against the system that a recipe names with `churn_against`
HIGHER_IS_BETTER = {  # metric: its name, also where others are called losses
    "auc": "AUC",
    "accuracy": "accuracy",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}
TRAINING = {"training_top1": "top-1 accuracy on training rows"}
IN_NATS = ("log_loss", "excess_log_loss", "cross_entropy", "excess_cross_entropy")
NAMES = {
    **HIGHER_IS_BETTER,
    **TRAINING,
    "log_loss": "log loss",
    "excess_log_loss": "excess log loss",
    "cross_entropy": "cross-entropy",
    "excess_cross_entropy": "excess cross-entropy",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "steps_to_50": "steps to the baseline's {loss} at 50 %",
    "steps_to_75": "steps to the baseline's {loss} at 75 %",
    "steps_to_85": "steps to the baseline's {loss} at 85 %",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "mean_abs_difference": "churn",
    "churn_without_shift": "churn without shift",
    "root_mean_square": "churn (root mean square)",
    "relative_difference": "relative difference",
    "rank_correlation": "rank correlation",
}
AXIS_LABELS = {
    "log_loss": "validation log loss (nats)",
    "excess_log_loss": "log loss above the optimum (nats)",
    "cross_entropy": "validation cross-entropy (nats)",
    "excess_cross_entropy": "cross-entropy above the optimum (nats)",
    "perplexity": "validation perplexity",
    "bits_per_byte": "validation bits per byte",
    "auc": "validation AUC",
    "accuracy": "validation accuracy",
    "top1": "validation top-1 accuracy",
    "top5": "validation top-5 accuracy",
    "brier": "validation Brier score",
    "calibration_error": "validation calibration error",
    "label_loss": "training label loss (nats)",
    "distill_loss": "distillation loss (nats)",
    "examples_per_second": "examples per second",
    "teacher_age_steps": "teacher age (steps)",
}


def higher_is_better(metric: str) -> bool:
    return metric in HIGHER_IS_BETTER or metric in TRAINING


def better(metric: str, first: float, second: float) -> bool:
    """Whether `first` is the better value of a metric."""
    return first > second if higher_is_better(metric) else first < second


def loss_or_accuracy(metric: str) -> str:
    """What a sentence calls the metric: `loss`, or the kind of accuracy."""
    return HIGHER_IS_BETTER.get(metric, "loss")


def name_of(metric: str, *, targets: str | None = None) -> str:
    """The metric's name in tables and sentences. targets: the metric of the recipe's targets, which steps_to_* name."""
    if metric.startswith(AGAINST):
        return f"{name_of(metric.removeprefix(AGAINST))} against the released model"
    return NAMES.get(metric, metric.replace("_", " ")).replace("{loss}", loss_or_accuracy(targets or ""))


def axis_label(metric: str) -> str:
    return AXIS_LABELS.get(metric, metric)


def unit_of(metric: str) -> str:
    """The unit with a space before it; nothing for a metric without one."""
    return " nats" if metric in IN_NATS else ""
