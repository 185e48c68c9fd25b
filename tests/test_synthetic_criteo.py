"""The generator: pure rows, honest probabilities, splits and streams that do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_config

from odist.config.schema import SyntheticConfig
from odist.tasks.criteo import CriteoTask
from odist.tasks.synthetic_criteo import BASE_RATE, SyntheticCriteo

GENERATOR = SyntheticCriteo(SyntheticConfig(vocabulary=300), seed=3)
IDS = np.arange(40_000)


def test_a_row_is_a_pure_function_of_its_number():
    whole = GENERATOR.rows(IDS[:1000], "train")
    picked = np.array([17, 3, 999, 17])
    again = SyntheticCriteo(SyntheticConfig(vocabulary=300), seed=3).rows(picked, "train")
    for column, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(column[picked], other)


def test_splits_and_seeds_differ():
    train, validation = (GENERATOR.rows(IDS[:100], split)[1] for split in ("train", "validation"))
    assert (train == validation).all(axis=1).mean() < 0.01
    other = SyntheticCriteo(SyntheticConfig(vocabulary=300), seed=4).rows(IDS[:100], "train")
    assert not np.array_equal(GENERATOR.rows(IDS[:100], "train")[3], other[3])


def test_the_true_probabilities_are_calibrated():
    """Within each decile of the stated probability the clicks are binomial with it: chi-square, 10 degrees."""
    _, _, labels, probability = GENERATOR.rows(IDS, "validation")
    order = np.argsort(probability)
    total = 0.0
    for part in np.array_split(order, 10):
        expected, variance = probability[part].sum(), (probability[part] * (1 - probability[part])).sum()
        total += (labels[part].sum() - expected) ** 2 / variance
    assert total < 29.6  # p = 0.001
    assert abs(probability.mean() - BASE_RATE) < 0.01


def test_columns_look_like_criteo():
    numeric, categorical, _, _ = GENERATOR.rows(IDS, "train")
    assert numeric.shape == (40_000, 13)
    assert categorical.shape == (40_000, 26)
    share = np.isnan(numeric).mean(axis=0)
    assert share.max() > 0.1 > share.min()
    largest = max(range(26), key=lambda column: len(np.unique(categorical[:, column])))
    counts = np.sort(np.bincount(categorical[:, largest]))[::-1]
    assert counts[0] > 8 * counts[20] > 0  # Zipf: few values are most of the rows
    columns = [set(np.unique(categorical[:, column])) for column in range(26)]
    assert sum(len(column) for column in columns) == len(set.union(*columns))  # no id in two columns
    assert categorical.max() < GENERATOR.num_ids


def test_the_logit_needs_interactions_and_missing_cells():
    """What the features determine is more than a sum over columns: that is what a tower is for."""
    plain = SyntheticCriteo(SyntheticConfig(vocabulary=300, interactions=0), seed=3)
    assert not np.allclose(plain.rows(IDS[:100], "train")[3], GENERATOR.rows(IDS[:100], "train")[3])
    weak = SyntheticCriteo(SyntheticConfig(vocabulary=300, signal=0.1), seed=3).rows(IDS, "train")[3]
    assert weak.std() < 0.3 * GENERATOR.rows(IDS, "train")[3].std()


def test_streams_are_disjoint_and_group_0_reads_the_single_models_rows():
    config = make_config("data.partition=disjoint", "algorithm=codistill", "task.synthetic.rows=1000")
    task = CriteoTask(config)
    read = [
        set(task.order(group=group, num_groups=2, examples_per_step=1000, seed=group).ids(0).tolist())
        for group in range(2)
    ]
    alone = task.order(group=0, num_groups=1, examples_per_step=1000, seed=7).ids(0).tolist()
    assert not read[0] & read[1]
    assert read[0] == set(alone)


def test_a_retrain_reads_the_same_rows_in_another_order():
    """`data.seed` fixes rows and split, `seed` the order."""
    task = CriteoTask(make_config("task.synthetic.rows=500"))
    first, second = (task.order(group=0, num_groups=1, examples_per_step=500, seed=seed).ids(0) for seed in (1, 2))
    assert sorted(first) == sorted(second) == list(range(500))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("holdout", ["validation", "tuning"])
def test_batches_are_finite_and_flag_missing_cells(holdout):
    task = CriteoTask(make_config(f"data.holdout={holdout}"))
    batch = task.batch(np.arange(64), "validation")
    numeric, ids = batch.inputs
    assert numeric.shape == (64, 26)
    assert torch.isfinite(numeric).all()
    assert ((numeric[:, :13] == 0) >= (numeric[:, 13:] == 1)).all()
    assert set(numeric[:, 13:].unique().tolist()) == {0.0, 1.0}
    assert ids.dtype == torch.int32
    assert float(task.prior()) == pytest.approx(BASE_RATE, abs=0.05)


def test_tuning_rows_are_not_the_reported_ones():
    reported, tuning = (CriteoTask(make_config(f"data.holdout={h}")) for h in ("validation", "tuning"))
    assert reported.fingerprint != tuning.fingerprint
    assert not torch.equal(
        reported.batch(np.arange(64), "validation").inputs[0], tuning.batch(np.arange(64), "validation").inputs[0]
    )
    assert torch.equal(reported.batch(np.arange(64), "train").inputs[0], tuning.batch(np.arange(64), "train").inputs[0])
