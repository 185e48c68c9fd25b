"""The release gate: its measures against plain formulas, its intervals against theory, and a pipeline's view of it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import odist
from sklearn.metrics import log_loss

from odist.errors import UserError
from odist.measure.churn import Form, pair_metrics
from odist.measure.gate import ALL_ROWS, Limit, gate, limits_with, parse_limit
from odist.measure.release import judge_release, write_report

ROWS = 4000


@pytest.fixture(scope="module")
def made() -> pd.DataFrame:
    """Labels, the released model's probabilities and those of two successors: a retrain, and one that moved up."""
    draw = np.random.default_rng(3)
    logit = draw.normal(-1, 1.2, ROWS)
    probability = {
        "old": logit + draw.normal(0, 0.2, ROWS),
        "retrain": logit + draw.normal(0, 0.2, ROWS),
        "moved": logit + draw.normal(0, 0.2, ROWS) + 0.5,
    }
    frame = pd.DataFrame({name: 1 / (1 + np.exp(-value)) for name, value in probability.items()})
    frame["target"] = (draw.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int)
    frame["country"] = np.where(draw.random(ROWS) < 0.3, "de", "fr")
    frame["user"] = np.arange(ROWS) // 8
    return frame


@pytest.fixture(scope="module")
def files(made: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    for name in ("old", "retrain", "moved"):
        columns = made[["target", "country", "user"]].assign(probability=made[name], row=np.arange(ROWS))
        columns.to_parquet(folder / f"{name}.parquet")
    return folder


def test_measures_are_what_they_are_called(made: pd.DataFrame) -> None:
    old, new, y = (made[name].to_numpy() for name in ("old", "moved", "target"))
    found = gate(old, new, limits=[], form=Form.binary, targets=y).measures
    for name, expected in pair_metrics(old, new, form=Form.binary).items():
        if name in found:
            assert found[name][0] == pytest.approx(expected), name
    assert found["flips_up"][0] == pytest.approx(((new > 0.5) & (old <= 0.5)).mean())
    assert found["flips_up"][0] + found["flips_down"][0] == pytest.approx(found["flips"][0])
    assert found["mean_shift"][0] == pytest.approx((new - old).mean())
    assert found["loss_increase"][0] == pytest.approx(log_loss(y, new) - log_loss(y, old))
    shift = abs(new.mean() - y.mean()) - abs(old.mean() - y.mean())
    assert found["calibration_shift"][0] == pytest.approx(shift)
    assert all(low <= value <= high for value, (low, high) in found.values())


def test_weights_count_rows_as_often(made: pd.DataFrame) -> None:
    old, new = made["old"].to_numpy(), made["moved"].to_numpy()
    weights = np.arange(ROWS) % 3
    weighted = gate(old, new, limits=[], form=Form.binary, weights=weights).measures
    repeated = gate(np.repeat(old, weights), np.repeat(new, weights), limits=[], form=Form.binary).measures
    for name in ("mean_abs_difference", "flips", "mean_shift"):
        assert weighted[name][0] == pytest.approx(repeated[name][0])


def test_intervals_have_the_width_of_theory_and_clusters_widen_them() -> None:
    draw = np.random.default_rng(5)
    old = draw.uniform(0.2, 0.8, 20_000)
    apart = draw.normal(0, 0.05, 20_000)
    alike = np.repeat(draw.normal(0, 0.05, 1000), 20)  # twenty rows of a user move alike
    users = np.repeat(np.arange(1000), 20)

    def width(moved: np.ndarray, clusters: np.ndarray | None) -> float:
        new = np.clip(old + moved, 0, 1)
        low, high = gate(old, new, limits=[], form=Form.binary, clusters=clusters).measures["mean_shift"][1]
        return high - low

    theory = 2 * 1.96 * 0.05 / np.sqrt(20_000)
    assert width(apart, None) == pytest.approx(theory, rel=0.15)
    assert width(alike, users) == pytest.approx(theory * np.sqrt(20), rel=0.15)


def test_classes_and_slices() -> None:
    draw = np.random.default_rng(7)
    old, new = (draw.dirichlet(np.ones(3), 600) for _ in range(2))
    part = np.arange(600) % 2
    found = gate(old, new, limits=[Limit("flips", 0.1)], form=Form.classes, slices={"part": part})
    assert [check.where for check in found.checks] == [ALL_ROWS, "part 0", "part 1"]
    for value, check in zip((0, 1), found.checks[1:], strict=True):
        rows = part == value
        assert check.value == pytest.approx((old.argmax(1) != new.argmax(1))[rows].mean())
        assert check.rows == 300
    assert not found.passed
    with pytest.raises(UserError, match="--max mean_shift: not known of these predictions"):
        gate(old, new, limits=[Limit("mean_shift", 0.1)], form=Form.classes)


def test_a_limit_may_be_a_multiple_of_what_retraining_moves() -> None:
    limits = limits_with([parse_limit("flips=2x"), parse_limit("mean_abs_difference=0.02")], {"flips": 0.03})
    assert limits == [Limit("flips", 0.06), Limit("mean_abs_difference", 0.02)]
    with pytest.raises(UserError, match="no --baseline was given"):
        limits_with([parse_limit("flips=2x")], None)
    for wrong in ("flip=1", "flips", "flips=much", "flips=-1", "flips=nan"):
        with pytest.raises(UserError, match="--max"):
            parse_limit(wrong)


def test_a_pipeline_stops_at_a_model_that_moved_and_lets_a_retrain_pass(files: Path) -> None:
    limits = (
        "--max",
        "mean_abs_difference=0.06",
        "--max",
        "mean_shift=0.02",
        "--slice",
        "country",
        "--cluster",
        "user",
    )
    passed = odist("churn", "old.parquet", "retrain.parquet", *limits, "--json", cwd=files)
    assert passed.returncode == 0, passed.stderr
    content = json.loads(passed.stdout)
    assert content["passed"]
    assert len(content["checks"]) == 6
    stopped = odist("churn", "old.parquet", "moved.parquet", *limits, "--report", "gate.xml", cwd=files)
    assert stopped.returncode == 5
    assert "exceeded: mean_shift of all rows" in stopped.stdout
    suite = ElementTree.parse(files / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("6", str(len(suite.findall("testcase/failure"))))
    assert {case.get("classname") for case in suite} == {"all rows", "country de", "country fr"}


def test_a_report_in_markdown_and_mistakes_that_are_named(files: Path) -> None:
    old, moved = files / "old.parquet", files / "moved.parquet"
    result = judge_release(old, moved, limits=["flips=0.01"])
    write_report(files / "gate.md", result)
    assert "| flips | all rows (4,000) |" in (files / "gate.md").read_text()
    assert "**exceeded**" in (files / "gate.md").read_text()
    with pytest.raises(UserError, match=r"expected a name that ends in \.md or \.xml"):
        write_report(files / "gate.txt", result)
    with pytest.raises(UserError, match=r"--cluster team: .* has no such column"):
        judge_release(old, moved, limits=["flips=0.01"], cluster="team")
    (files / "churn.json").write_text("[1]")
    with pytest.raises(UserError, match=r"churn\.json: damaged"):
        judge_release(old, moved, limits=["flips=2x"], baseline=files / "churn.json")
    alone = odist("churn", "old.parquet", "moved.parquet", "--cluster", "user", cwd=files)
    assert alone.returncode == 2
    assert "only with --max" in alone.stderr
