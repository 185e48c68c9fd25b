"""Churn against brute force and scipy, and what is refused as a pair of retrains."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from sklearn.metrics import log_loss
from test_cli import odist

from odist.errors import UserError
from odist.measure.churn import churn
from odist.measure.predictions import compare_retrains, load_predictions
from odist.run.folder import Run

ROWS = 500


def retrains(count: int, *, noise: float = 0.3, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 1.5, ROWS)
    targets = (generator.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    return [1 / (1 + np.exp(-logits - generator.normal(0, noise, ROWS))) for _ in range(count)], targets


def make_run(path: Path, p: np.ndarray, targets: np.ndarray, *, seed: int, **changes: Any) -> Run:
    """A run folder as a finished training leaves it."""
    config = {"seed": seed, "data": {"seed": changes.pop("data_seed", 0), "path": None}}
    config |= {"optim": {"lr": changes.pop("lr", 0.02)}, "run": {"dir": str(path)}}
    run = Run.create(path, config, overrides=[], env={})
    root = run.prediction_root("validation")
    root.mkdir(parents=True)
    np.save(root / "group-0.npy", p)
    np.save(root / "targets.npy", targets)
    meta = {"num_groups": 1, "predictor": "group-0", "fingerprint": changes.pop("fingerprint", "f00d")}
    (root / "meta.json").write_text(json.dumps(meta))
    return run


def test_every_measure_is_the_mean_over_all_pairs() -> None:
    predictions, targets = retrains(4)
    result = churn(predictions, targets=targets, threshold=0.3).metrics
    pairs = list(combinations(predictions, 2))
    expected = {
        "mean_abs_difference": np.mean([np.abs(a - b).mean() for a, b in pairs]),
        "root_mean_square": np.mean([math.sqrt(((a - b) ** 2).mean()) for a, b in pairs]),
        "flips": np.mean([((a > 0.3) != (b > 0.3)).mean() for a, b in pairs]),
        "relative_difference": np.mean([(2 * np.abs(a - b) / (a + b)).mean() for a, b in pairs]),
        "rank_correlation": np.mean([stats.spearmanr(a, b).statistic for a, b in pairs]),
        "log_loss": np.mean([log_loss(targets, p) for p in predictions]),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-10)
    losses = [log_loss(targets, p) for p in predictions]
    assert result["log_loss_interval"] == pytest.approx(stats.t.interval(0.95, 3, np.mean(losses), stats.sem(losses)))


def test_the_interval_is_the_delete_one_run_jackknife() -> None:
    predictions, _ = retrains(5)
    result = churn(predictions, confidence=0.9).metrics
    value = result["mean_abs_difference"]
    deleted = []
    for omitted in range(5):
        rest = [p for index, p in enumerate(predictions) if index != omitted]
        deleted.append(np.mean([np.abs(a - b).mean() for a, b in combinations(rest, 2)]))
    half = stats.t.ppf(0.95, 4) * math.sqrt(4 / 5 * np.sum((np.array(deleted) - np.mean(deleted)) ** 2))
    assert result["mean_abs_difference_interval"] == pytest.approx([value - half, value + half], rel=1e-9)


def test_two_retrains_have_a_value_but_no_interval() -> None:
    predictions, _ = retrains(2)
    result = churn(predictions)
    assert result.metrics["mean_abs_difference"] > 0
    assert result.metrics["mean_abs_difference_interval"] is None
    assert "third" in result.notes[0]


def test_no_interval_over_runs_leaves_what_the_metric_can_be() -> None:
    """Three retrains, one of which is calibrated otherwise: Student's interval would reach far below 0."""
    targets = np.tile([0.0, 1.0], 50)
    same, other = np.full(100, 0.5), np.where(targets == 1.0, 0.6, 0.1)
    metrics = churn([same, same, other], targets=targets).metrics
    for name in ("log_loss", "calibration_error"):
        low, high = metrics[f"{name}_interval"]
        assert 0.0 <= low < metrics[name] < high
    assert metrics["calibration_error_interval"][0] == 0.0


def test_two_retrains_have_no_interval_at_all_and_are_told_so_once(tmp_path: Path) -> None:
    predictions, targets = retrains(2)
    for seed, p in enumerate(predictions):
        make_run(tmp_path / f"s{seed}", p, targets, seed=seed)
    result = compare_retrains([tmp_path / "s0", tmp_path / "s1"])
    intervals = {key: value for key, value in result.metrics.items() if key.endswith("_interval")}
    assert {"log_loss_interval", "calibration_error_interval", "flips_interval"} <= set(intervals)
    assert set(intervals.values()) == {None}
    printed = odist("churn", "s0", "s1", cwd=tmp_path).stdout
    assert printed.count("third seed") + printed.count("three retrains") == 1


def test_zero_probabilities_have_no_relative_difference_and_equal_runs_no_churn() -> None:
    p = np.array([0.0, 0.0, 0.5, 1.0])
    result = churn([p, p]).metrics
    assert (result["mean_abs_difference"], result["relative_difference"], result["flips"]) == (0.0, 0.0, 0.0)
    assert result["rank_correlation"] == pytest.approx(1.0)


def test_two_classes_written_out_have_the_churn_of_the_binary_form() -> None:
    predictions, targets = retrains(3)
    binary = churn(predictions, targets=targets)
    classes = churn([np.stack([1 - p, p], axis=1) for p in predictions], targets=targets)
    for name in ("mean_abs_difference", "mean_abs_difference_interval", "root_mean_square", "flips"):
        assert classes.metrics[name] == pytest.approx(binary.metrics[name]), name
    assert classes.metrics["cross_entropy"] == pytest.approx(binary.metrics["log_loss"])
    assert classes.metrics["rank_correlation"] is None


def test_slices_repeat_the_measure_within_each_value() -> None:
    predictions, targets = retrains(3)
    device = np.array(["phone", "desk"], dtype=object)[np.arange(ROWS) % 2]
    result = churn(predictions, targets=targets, slices={"device": device, "numbers": np.linspace(0, 1, ROWS)})
    for row in result.slices["device"]:
        inside = device == row["value"]
        pairs = combinations(predictions, 2)
        assert row["mean_abs_difference"] == pytest.approx(np.mean([np.abs(a - b)[inside].mean() for a, b in pairs]))
        assert row["rows"] == ROWS // 2
        assert row["mean_abs_difference_interval"][0] < row["mean_abs_difference"]
    assert [row["value"] for row in result.slices["numbers"]] == list(range(1, 11))
    many = churn(predictions, slices={"id": np.arange(ROWS).astype(str)}).slices["id"]
    assert len(many) == 50
    assert many[-1]["value"] == "other"
    assert sum(row["rows"] for row in many) == ROWS


def test_runs_are_compared_with_built_in_slices(tmp_path: Path) -> None:
    predictions, targets = retrains(3)
    for seed, p in enumerate(predictions):
        make_run(tmp_path / f"s{seed}", p, targets, seed=seed)
    result = compare_retrains([tmp_path / f"s{seed}" for seed in range(3)])
    assert result.names == ["s0", "s1", "s2"]
    assert result.notes == []
    assert result.rows == ROWS
    assert set(result.slices) == {"decile", "label", "position"}
    assert [row["rows"] for row in result.slices["decile"]] == [ROWS // 10] * 10
    assert {row["value"]: row["rows"] for row in result.slices["label"]} == {0: (targets == 0).sum(), 1: targets.sum()}
    first = slice(0, ROWS // 10)
    tenth = np.mean([np.abs(a - b)[first].mean() for a, b in combinations(predictions, 2)])
    assert result.slices["position"][0]["mean_abs_difference"] == pytest.approx(tenth)
    assert json.loads(json.dumps(result.to_dict()))["mean_abs_difference"] == result.metrics["mean_abs_difference"]


def test_doubts_are_noted(tmp_path: Path) -> None:
    (a, b, c), targets = retrains(3)
    make_run(tmp_path / "a", a, targets, seed=1)
    make_run(tmp_path / "b", b, targets, seed=1)
    make_run(tmp_path / "c", c, targets, seed=2, lr=0.5, data_seed=9)
    same, data, beyond = compare_retrains([tmp_path / "a", tmp_path / "b", tmp_path / "c"]).notes
    assert "Same seed (1): a, b" in same
    assert "data.seed" in data
    assert "optim.lr (0.02, 0.5)" in beyond
    assert "run.dir" not in beyond


def test_runs_that_were_only_computed_or_watched_in_another_way_raise_no_doubt(tmp_path: Path) -> None:
    (a, b), targets = retrains(2)
    make_run(tmp_path / "a", a, targets, seed=1)
    make_run(tmp_path / "b", b, targets, seed=2)
    watched = {"prefetch": 0, "log_every": 500, "checkpoint_every": 100}
    for name, how in (("a", {}), ("b", {"exchange": {"name": "store"}, "launch": {"name": "local"}, "train": watched})):
        path = tmp_path / name / "config.yaml"
        config = {"algorithm": {"teacher": "peers"}, "exchange": {"name": "memory", "timing": "lockstep"}}
        path.write_text(json.dumps(yaml.safe_load(path.read_text()) | config | how))
    notes = compare_retrains([tmp_path / "a", tmp_path / "b"]).notes
    assert [note for note in notes if "differ" in note] == []


def test_other_rows_the_same_run_and_a_single_run_are_refused(tmp_path: Path) -> None:
    (a, b), targets = retrains(2)
    make_run(tmp_path / "a", a, targets, seed=1)
    make_run(tmp_path / "b", b, targets, seed=2, fingerprint="beef")
    with pytest.raises(UserError, match="different rows"):
        compare_retrains([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="twice"):
        compare_retrains([tmp_path / "a", tmp_path / "b" / ".." / "a"])
    with pytest.raises(UserError, match="at least two"):
        compare_retrains([tmp_path / "a"])
    with pytest.raises(UserError, match="no such run folder"):
        compare_retrains([tmp_path / "a", tmp_path / "nothing"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_are_aligned_by_key(tmp_path: Path, suffix: str) -> None:
    (a, b), targets = retrains(2)
    order = np.random.default_rng(0).permutation(ROWS)
    first = pd.DataFrame({"id": np.arange(ROWS), "probability": a, "label": targets, "site": np.arange(ROWS) % 3})
    second = pd.DataFrame({"id": np.arange(ROWS), "probability": b, "label": targets}).iloc[order]
    paths = [tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"]
    for frame, path in zip((first, second), paths, strict=True):
        if suffix == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path, index=False)
    result = compare_retrains(paths, key="id", slices=["site"])
    assert result.metrics["mean_abs_difference"] == pytest.approx(np.abs(a - b).mean())
    assert [row["value"] for row in result.slices["site"]] == [0, 1, 2]
    with pytest.raises(UserError, match=r"disagree in the column 'id' in 499 of 500 rows.*--key id"):
        compare_retrains(paths)
    with pytest.raises(UserError, match="disagree on the label"):
        compare_retrains(paths, by_order=True)
    with pytest.raises(UserError, match=r"no slice 'sight'.*site"):
        compare_retrains(paths, key="id", slices=["sight"])


def test_a_run_and_a_file_can_be_compared(tmp_path: Path) -> None:
    (a, b), targets = retrains(2)
    make_run(tmp_path / "a", a, targets, seed=1)
    pd.DataFrame({"p": b}).to_csv(tmp_path / "b.csv", index=False)
    result = compare_retrains([tmp_path / "a", tmp_path / "b.csv"])
    assert result.metrics["mean_abs_difference"] == pytest.approx(np.abs(a - b).mean())
    assert result.metrics["log_loss"] == pytest.approx((log_loss(targets, a) + log_loss(targets, b)) / 2)


def test_bad_files_are_refused_with_what_was_found(tmp_path: Path) -> None:
    def write(name: str, **columns: Any) -> Path:
        pd.DataFrame(columns).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    good = write("good.csv", p=[0.1, 0.2, 0.3], k=[1, 2, 3])
    cases = [
        (write("logits.csv", p=[0.1, -2.0, 3.0]), {}, r"2 places, the first in row 1 \(value -2.0\)"),
        (write("nan.csv", p=[0.1, None, 0.3]), {}, r"1 places, the first in row 1 \(value nan\)"),
        (write("short.csv", p=[0.1, 0.2]), {}, "has 2 rows, .*good.csv 3"),
        (write("words.csv", p=["a", "b", "c"]), {}, "other than numbers"),
        (write("none.csv", q=[0.1, 0.2, 0.3]), {}, "It has: q"),
        (write("repeated.csv", p=[0.1, 0.2, 0.3], k=[1, 1, 2]), {"key": "k"}, "does not name each row once"),
        (
            write("other.csv", p=[0.1, 0.2, 0.3], k=[1, 2, 4]),
            {"key": "k"},
            r"1 row only in .*good.csv \(first: k 3\) and 1 row only in .*other.csv \(first: k 4\)",
        ),
        (tmp_path / "missing.csv", {}, "no such file"),
    ]
    for path, options, message in cases:
        with pytest.raises(UserError, match=message):
            compare_retrains([good, path], slices=[], **options)
    with pytest.raises(UserError, match=r"no column 'z' \(--column\), nor z_0, z_1 and so on. It has: p, k"):
        load_predictions(good, column="z")
