"""The logistic reference against scikit-learn, and on real rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from odist.claims.logistic import (
    LogisticGrid,
    LogisticOptions,
    fit_passes,
    logistic_reference,
    paired_differences,
    predict,
    read_rows,
)
from odist.config.schema import Config, DataConfig
from odist.data.rows import FORMAT, RowWriter
from odist.errors import UserError
from odist.tasks.criteo import PreparedSource

ROWS, BUCKETS = 4000, 300


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared store whose clicks are drawn from a linear model of its columns."""
    generator = np.random.default_rng(0)
    numeric = generator.normal(1, 1, (ROWS, 13)).astype(np.float32)
    numeric[generator.random((ROWS, 13)) < 0.2] = np.nan
    ids = (generator.zipf(1.4, (ROWS, 26)) + 7 * np.arange(26)) % BUCKETS
    logit = -1.5 + 0.5 * np.nan_to_num(numeric)[:, :4].sum(1) + generator.normal(0, 0.5, BUCKETS)[ids].sum(1) / 2
    labels = generator.random(ROWS) < 1 / (1 + np.exp(-logit))
    folder = tmp_path_factory.mktemp("data") / "store"
    folder.mkdir()
    packed = np.concatenate([labels[:, None], numeric.view(np.int32), ids], axis=1).astype(np.int32)
    with RowWriter(folder / "rows.npy", columns=40) as writer:
        writer.append(packed)
        writer.finish()
    splits = {"train": {"file": "rows.npy", "start": 0, "stop": 3000}}
    splits["validation"] = {"file": "rows.npy", "start": 3000, "stop": ROWS}
    fitted = {
        "numeric_mean": np.nanmean(numeric[:3000], 0).tolist(),
        "numeric_std": np.nanstd(numeric[:3000], 0).tolist(),
    }
    meta = {"format": FORMAT, "task": "criteo", "fingerprint": "f00d", "fitted_fingerprint": "f17", "columns": 40}
    meta |= {"splits": splits, "fitted": fitted, "options": {"buckets": BUCKETS}, "report": {}}
    (folder / "store.json").write_text(json.dumps(meta))
    return folder


def source_of(store: Path, holdout: str = "validation") -> PreparedSource:
    return PreparedSource(Config(data=DataConfig(name="prepared", path=str(store), holdout=holdout)))


def matrix(source: PreparedSource, rows: int, split: str) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The same rows as scikit-learn wants them, built by hand from the store."""
    columns = source.rows(np.arange(rows), split)
    numeric, ids, labels = columns.numeric, columns.categorical, columns.labels[:, 0]
    missing = np.isnan(numeric)
    scaled = np.nan_to_num((numeric - source.numeric_mean) / source.numeric_std)
    hashed = np.zeros((rows, BUCKETS))
    np.add.at(hashed, (np.arange(rows)[:, None], ids), 1.0)
    return sparse.csr_matrix(np.concatenate([scaled, missing, hashed], axis=1)), labels


@pytest.mark.parametrize("l2", [1e-3, 1e-2])
def test_many_passes_reach_the_optimum_of_scikit_learn(store: Path, l2: float) -> None:
    source = source_of(store)
    rows, labels = matrix(source, 3000, "train")
    oracle = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=5000).fit(rows, labels)
    expected = oracle.predict_proba(matrix(source, 1000, "validation")[0])[:, 1]
    *_, model = fit_passes(source, options=LogisticOptions(lr=0.2, l2=l2, passes=100, batch=500))
    probabilities, targets = predict(model, source)
    np.testing.assert_array_equal(targets, matrix(source, 1000, "validation")[1])
    assert np.abs(probabilities - expected).mean() < 0.005
    assert np.corrcoef(probabilities, expected)[0, 1] > 0.999
    assert abs(log_loss(targets, probabilities) - log_loss(targets, expected)) < 0.001


def test_the_penalty_of_a_weight_that_is_never_used_again_is_applied_in_full(store: Path) -> None:
    source = source_of(store)
    dense, ids, labels = read_rows(source, np.arange(100), split="train")
    from odist.claims.logistic import HashedLogistic

    options = LogisticOptions(lr=0.1, l2=0.01)
    model = HashedLogistic(26, BUCKETS, options=options)
    model.update(dense[:50], ids[:50], labels[:50])
    only_first = sorted(set(ids[:50].ravel()) - set(ids[50:].ravel()))[0]
    place = 1 + 26 + only_first
    weight, gradient = model.weights[place], np.sqrt(model.squares[place])
    assert weight != 0
    for _ in range(7):
        model.update(dense[50:], ids[50:], labels[50:])
    assert model.weights[place] == weight  # not touched so far
    model.settle()
    # Decay is applied before an update is counted, so the first of the seven steps is its own.
    assert model.weights[place] == pytest.approx(weight * np.exp(-8 * 0.1 * 0.01 / gradient))


def test_settings_are_chosen_on_the_tuning_split_and_judged_on_the_validation_part(store: Path) -> None:
    grid = LogisticGrid(lr=(0.05, 0.1, 0.2), l2=(1e-4, 1e-3, 1e-2), passes=3, extensions=1)
    result = logistic_reference(DataConfig(name="prepared", path=str(store)), grid=grid)
    best = min(result.trials, key=lambda trial: trial.log_loss)
    assert result.options == best.options
    # The trial again by hand, on the rows that tuning may see.
    tuning = source_of(store, "tuning")
    assert tuning.num_rows("train") == 2625
    *_, model = fit_passes(tuning, options=best.options)
    probabilities, targets = predict(model, tuning)
    np.testing.assert_array_equal(targets, source_of(store).rows(np.arange(2625, 3000), "train").labels[:, 0])
    assert log_loss(targets, probabilities.astype(np.float64)) == pytest.approx(best.log_loss)
    # And the fit that is reported.
    *_, model = fit_passes(source_of(store), options=best.options)
    probabilities, targets = predict(model, source_of(store))
    np.testing.assert_array_equal(result.probabilities, probabilities)
    assert result.metrics["log_loss"] == pytest.approx(log_loss(targets, probabilities))
    assert result.metrics["auc"] == pytest.approx(roc_auc_score(targets, probabilities))
    low, high = result.metrics["auc_interval"]
    assert low < result.metrics["auc"] < high
    inside = {"lr": result.options.lr, "l2": result.options.l2}
    tried = {name: {getattr(trial.options, name) for trial in result.trials} for name in inside}
    for name, value in inside.items():
        assert (name in result.at_edge) == (value in (min(tried[name]), max(tried[name])))


def test_a_difference_from_the_reference_is_paired_over_rows() -> None:
    generator = np.random.default_rng(1)
    targets = (generator.random(500) < 0.3).astype(float)
    reference = generator.uniform(0.1, 0.6, 500)
    runs = [np.clip(reference + generator.normal(0, 0.05, 500), 0.01, 0.99) for _ in range(3)]
    by_run, mean = paired_differences(runs, reference, targets=targets)

    def losses(p: np.ndarray) -> np.ndarray:
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))

    for found, p in zip(by_run, runs, strict=True):
        paired = losses(p) - losses(reference)
        assert found.difference == pytest.approx(paired.mean())
        assert found.interval == pytest.approx(stats.norm.interval(0.95, paired.mean(), stats.sem(paired)))
    assert mean.difference == pytest.approx(np.mean([found.difference for found in by_run]))


def test_generated_rows_are_refused() -> None:
    with pytest.raises(UserError, match="for prepared rows"):
        logistic_reference(DataConfig(name="synthetic"))


def test_on_real_rows_it_predicts_as_well_as_such_a_model_can(criteo_file: Path, tmp_path: Path) -> None:
    from odist.prepare.criteo.prepare import CriteoOptions, prepare_criteo

    prepare_criteo([str(criteo_file)], output=tmp_path / "criteo", options=CriteoOptions())
    source = source_of(tmp_path / "criteo")
    *_, model = fit_passes(source, options=LogisticOptions())
    probabilities, targets = predict(model, source)
    assert log_loss(targets, probabilities) == pytest.approx(0.4851, abs=0.001)
    assert roc_auc_score(targets, probabilities) == pytest.approx(0.7648, abs=0.002)
