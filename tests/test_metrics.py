"""Metrics against scikit-learn, scipy and brute force."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from odist.measure import intervals
from odist.measure.exact import binary_results, multiclass_results
from odist.measure.metrics import BinaryMetrics, MulticlassMetrics
from odist.measure.scores import auc_delong, constant_loss, mid_ranks


def binary_case(n: int = 3000, *, seed: int = 0, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets and the true probabilities, with base rate about a quarter."""
    generator = np.random.default_rng(seed)
    true = generator.normal(-1.2, spread, n)
    targets = (generator.random(n) < 1 / (1 + np.exp(-true))).astype(np.float64)
    return true + generator.normal(0, 0.7, n), targets, 1 / (1 + np.exp(-true))


def expected_calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    total = 0.0
    for b in range(bins):
        inside = (p >= b / bins) & ((p < (b + 1) / bins) | ((b == bins - 1) & (p == 1.0)))
        if inside.any():
            total += inside.sum() * abs(p[inside].mean() - y[inside].mean())
    return total / len(p)


def brute_force_delong(p: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """AUC and its variance by all pairs."""
    positive, negative = p[y == 1], p[y == 0]
    kernel = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    variance = kernel.mean(axis=1).var(ddof=1) / len(positive) + kernel.mean(axis=0).var(ddof=1) / len(negative)
    return float(kernel.mean()), float(variance)


def test_binary_metrics_agree_with_scikit_learn_however_the_rows_are_batched() -> None:
    logits, targets, _ = binary_case()
    weights = np.random.default_rng(1).integers(0, 4, len(logits)).astype(np.float64)
    p = 1 / (1 + np.exp(-logits))
    metrics = BinaryMetrics()
    for rows in np.array_split(np.arange(len(logits)), 7):
        metrics.update(logits[rows], targets[rows], weights[rows])
    result = metrics.result()
    assert result["log_loss"] == pytest.approx(sk.log_loss(targets, p, sample_weight=weights), rel=1e-12)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(targets, p > 0.5, sample_weight=weights), rel=1e-12)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(targets, p, sample_weight=weights), rel=1e-12)
    assert result["mean_prediction"] == pytest.approx(np.average(p, weights=weights), rel=1e-12)
    assert result["base_rate"] == pytest.approx(np.average(targets, weights=weights), rel=1e-12)
    auc, bound = result["auc"], result["auc_error_bound"]
    assert auc is not None
    assert bound is not None
    assert bound < 1e-4
    assert abs(auc - sk.roc_auc_score(targets, p, sample_weight=weights)) <= bound + 1e-12
    assert result["rows"] == 3000


def test_a_coarse_score_histogram_stays_within_its_error_bound() -> None:
    logits, targets, _ = binary_case()
    coarse = BinaryMetrics(num_score_bins=64)
    coarse.update(logits, targets)
    result = coarse.result()
    assert result["auc"] is not None
    assert result["auc_error_bound"] is not None
    error = abs(result["auc"] - sk.roc_auc_score(targets, logits))
    assert 0 < error <= result["auc_error_bound"]


def test_ties_of_the_score_count_half() -> None:
    tied = BinaryMetrics()
    tied.update(np.zeros(6), np.array([0, 1, 0, 1, 1, 0]))
    assert tied.result()["auc"] == 0.5


def test_excess_log_loss_is_zero_for_the_bayes_predictor_and_positive_for_a_noisy_one() -> None:
    logits, targets, bayes = binary_case()
    own = BinaryMetrics()
    own.update(np.log(bayes / (1 - bayes)), targets, bayes=bayes)
    assert own.result()["excess_log_loss"] == pytest.approx(0.0, abs=1e-12)
    noisy = BinaryMetrics()
    noisy.update(logits, targets, bayes=bayes)
    p = 1 / (1 + np.exp(-logits))
    expected = sk.log_loss(targets, p) - sk.log_loss(targets, bayes)
    assert noisy.result()["excess_log_loss"] == pytest.approx(expected, rel=1e-9)
    exact = binary_results(p, targets, bayes=bayes)
    assert exact["excess_log_loss"] == pytest.approx(expected, rel=1e-9)
    difference = [
        sk.log_loss([y], [a], labels=[0, 1]) - sk.log_loss([y], [b], labels=[0, 1])
        for y, a, b in zip(targets[:200], p[:200], bayes[:200], strict=True)
    ]
    interval = stats.norm.interval(0.95, np.mean(difference), stats.sem(difference))
    part = binary_results(p[:200], targets[:200], bayes=bayes[:200])
    assert part["excess_log_loss_interval"] == pytest.approx(interval, rel=1e-9)


def test_log_loss_of_extreme_logits_is_stable_and_nan_is_not_hidden() -> None:
    extreme = BinaryMetrics()
    extreme.update(np.array([800.0, -800.0, 800.0, np.inf]), np.array([1.0, 0.0, 0.0, 1.0]))
    assert extreme.result()["log_loss"] == pytest.approx(200.0)
    broken = BinaryMetrics()
    broken.update(np.array([0.0, np.nan, 1.0]), np.array([0.0, 1.0, 1.0]))
    result = broken.result()
    assert math.isnan(result["log_loss"])
    assert math.isnan(result["auc"])


def test_one_class_and_no_rows_have_no_auc() -> None:
    one = BinaryMetrics()
    one.update(np.array([0.1, 2.0]), np.array([1.0, 1.0]))
    assert one.result()["auc"] is None
    assert one.result()["log_loss"] is not None
    assert BinaryMetrics().result()["log_loss"] is None
    exact = binary_results(np.array([0.1, 0.2]), np.zeros(2))
    assert exact["auc"] is None
    assert exact["auc_interval"] is None
    assert exact["accuracy"] == 1.0
    assert exact["accuracy_interval"][1] == 1.0


def test_torch_tensors_are_accepted() -> None:
    import torch

    logits, targets, _ = binary_case(64)
    plain, tensor = BinaryMetrics(), BinaryMetrics()
    plain.update(logits.astype(np.float32), targets)
    tensor.update(torch.tensor(logits, dtype=torch.float32, requires_grad=True), torch.tensor(targets))
    assert plain.result() == tensor.result()


def test_binary_results_agree_with_scikit_learn_and_scipy() -> None:
    logits, targets, _ = binary_case()
    p = np.round(1 / (1 + np.exp(-logits)), 2)  # rounded: many ties, and exact zeros and ones
    result = binary_results(p, targets)
    assert (p == 0).any()
    assert result["log_loss"] == pytest.approx(sk.log_loss(targets, p), rel=1e-12)
    assert result["auc"] == pytest.approx(sk.roc_auc_score(targets, p), rel=1e-12)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(targets, p), rel=1e-12)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(targets, p > 0.5), rel=1e-12)
    correct = int(((p > 0.5) == (targets > 0.5)).sum())
    wilson = stats.binomtest(correct, len(p)).proportion_ci(0.95, method="wilson")
    assert result["accuracy_interval"] == pytest.approx([wilson.low, wilson.high], rel=1e-9)
    rows = -np.log(np.clip(np.where(targets == 1, p, 1 - p), np.finfo(float).eps, None))
    assert result["log_loss_interval"] == pytest.approx(stats.norm.interval(0.95, rows.mean(), stats.sem(rows)))


def test_calibration_error_agrees_with_a_loop_over_bins() -> None:
    logits, targets, _ = binary_case()
    p = 1 / (1 + np.exp(-logits))
    p[:2] = (0.0, 1.0)
    assert binary_results(p, targets)["calibration_error"] == pytest.approx(expected_calibration_error(p, targets))
    streamed = BinaryMetrics(10)
    streamed.update(logits, targets)
    p = 1 / (1 + np.exp(-logits))
    assert streamed.result()["calibration_error"] == pytest.approx(expected_calibration_error(p, targets, 10))


@pytest.mark.parametrize("digits", [2, 8])
def test_delong_interval_agrees_with_all_pairs(digits: int) -> None:
    logits, targets, _ = binary_case(400)
    p = np.round(1 / (1 + np.exp(-logits)), digits)
    auc, interval = auc_delong(p, targets, confidence=0.9)
    expected, variance = brute_force_delong(p, targets)
    assert auc == pytest.approx(expected, rel=1e-12)
    assert interval == pytest.approx(stats.norm.interval(0.9, expected, math.sqrt(variance)), rel=1e-9)


def test_mid_ranks_agree_with_scipy() -> None:
    values = np.random.default_rng(3).integers(0, 20, 200) / 7
    assert mid_ranks(values).tolist() == stats.rankdata(values).tolist()


def multiclass_case(n: int = 800, classes: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    targets = generator.integers(0, classes, n)
    logits = generator.normal(0, 1, (n, classes))
    logits[np.arange(n), targets] += 0.8
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits, targets, p


def test_multiclass_metrics_agree_with_scikit_learn() -> None:
    logits, targets, p = multiclass_case()
    metrics = MulticlassMetrics()
    metrics.update(logits[:300] + 500.0, targets[:300])  # a shift of all logits changes nothing
    metrics.update(logits[300:], targets[300:])
    exact = multiclass_results(p, targets)
    correct = (p.argmax(axis=1) == targets).astype(float)
    for result in (metrics.result(), exact):
        assert result["cross_entropy"] == pytest.approx(sk.log_loss(targets, p), rel=1e-9)
        assert result["perplexity"] == pytest.approx(math.exp(sk.log_loss(targets, p)), rel=1e-9)
        assert result["top1"] == pytest.approx(correct.mean(), rel=1e-12)
        assert result["top5"] == pytest.approx(sk.top_k_accuracy_score(targets, p, k=5), rel=1e-12)
        assert result["calibration_error"] == pytest.approx(expected_calibration_error(p.max(axis=1), correct))
    low, high = exact["cross_entropy_interval"]
    assert exact["perplexity_interval"] == pytest.approx([math.exp(low), math.exp(high)])


def test_multiclass_weights_and_leading_shape() -> None:
    logits, targets, p = multiclass_case(600)
    weights = np.random.default_rng(2).integers(0, 3, 600).astype(float)
    grid = MulticlassMetrics()
    grid.update(logits.reshape(20, 30, 8), targets.reshape(20, 30), weights.reshape(20, 30))
    assert grid.result()["cross_entropy"] == pytest.approx(sk.log_loss(targets, p, sample_weight=weights), rel=1e-9)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        BinaryMetrics().update(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="targets"):
        MulticlassMetrics().update(np.zeros((3, 2)), np.zeros(4))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 29.5, 1000])
@pytest.mark.parametrize("probability", [0.0005, 0.3, 0.5, 0.9, 0.975, 0.995])
def test_t_quantile_agrees_with_scipy(probability: float, freedom: float) -> None:
    assert intervals.t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_intervals_of_means_agree_with_scipy() -> None:
    values = [0.44, 0.45, 0.43, 0.46]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert intervals.mean_interval(values) == pytest.approx(expected)
    assert intervals.mean_interval([0.4]) is None
    assert intervals.mean_interval([0.4, 0.5]) is None


def test_the_jackknife_of_a_mean_is_the_t_interval_and_covers_a_churn_of_known_size() -> None:
    values = np.random.default_rng(0).normal(size=6)
    value, interval = intervals.jackknife(lambda runs: float(values[runs].mean()), 6)
    assert value == pytest.approx(values.mean())
    assert interval == pytest.approx(stats.t.interval(0.95, 5, values.mean(), stats.sem(values)))

    # |a - b| of independent normal draws has mean 2 / sqrt(pi): the 90 % interval should cover it about 90 % of times
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        draws = generator.normal(size=(5, 40))

        def mean_difference(runs: list[int], draws: np.ndarray = draws) -> float:
            pairs = [np.abs(draws[i] - draws[j]).mean() for k, i in enumerate(runs) for j in runs[k + 1 :]]
            return float(np.mean(pairs))

        _, bounds = intervals.jackknife(mean_difference, 5, confidence=0.9)
        assert bounds is not None
        covered += bounds[0] <= 2 / math.sqrt(math.pi) <= bounds[1]
    assert 0.8 < covered / 400 < 0.97


def test_importing_the_metrics_loads_no_heavy_package() -> None:
    code = "import sys, odist.measure.metrics; print([m for m in ('torch', 'pandas', 'scipy', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_interval_over_rows_leaves_what_the_metric_can_be() -> None:
    """Four rows, one of them badly wrong: the normal interval of the loss would begin below 0."""
    binary = binary_results(np.array([0.99, 0.99, 0.01, 0.999]), np.array([1, 1, 0, 0]))
    classes = multiclass_results(np.array([[0.99, 0.01], [0.99, 0.01], [0.01, 0.99], [0.999, 0.001]]), [0, 0, 1, 1])
    assert binary["log_loss_interval"][0] == classes["cross_entropy_interval"][0] == 0.0
    assert classes["perplexity_interval"][0] >= 1.0


def test_the_loss_of_a_constant_prediction_is_the_oracles() -> None:
    random = np.random.default_rng(0)
    classes, prior = random.integers(0, 3, 500), random.dirichlet(np.ones(3))
    assert constant_loss(prior, classes) == pytest.approx(sk.log_loss(classes, np.tile(prior, (500, 1))))
