"""Systems of a recipe that read the runs of another: by the last weights, by the mean of the groups, by each copy alone."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from odist.claims.recipe_file import parse_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines
from odist.claims.reproduce import reproduce
from odist.claims.retrains import Retrains
from odist.errors import UserError
from odist.measure.churn import pair_metrics
from odist.measure.exact import binary_results
from odist.run.folder import Run

RECIPE = """
title: Averages and their last weights
reference: single
seeds: [1, 2]
metrics: [log_loss, mean_abs_difference]
overrides: [task=criteo, data=synthetic, train.evaluate_every=1000]
systems:
  single: {label: one model, overrides: [algorithm=sync]}
  averages: {label: two averages, overrides: [algorithm=ensemble, train.average=ema, train.average_horizon=400]}
  members: {label: each member, runs_of: averages, predictor: copies, weights: last}
  ensemble: {label: ensemble, runs_of: averages, weights: last}
  pair: {label: a pair, overrides: [algorithm=codistill]}
  pair_mean: {label: its mean, runs_of: pair, predictor: mean}
scales: {smoke: {}}
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[int, Record]], Path]:
    root = tmp_path_factory.mktemp("recipe")
    (root / "averages.yaml").write_text(RECIPE)
    result = reproduce(
        root / "averages.yaml", output=root / "reports", runs_dir=root / "runs", jobs=2, echo=lambda _: None
    )
    found: dict[str, dict[int, Record]] = {}
    for record in read_lines(result.folder / RUNS_FILE, Record).lines:
        found.setdefault(record.system, {})[record.seed] = record
    assert len(result.commands) == 6  # nothing is trained for the other three
    assert "Missing runs" not in (result.folder / "averages.md").read_text()
    return found, root / "runs" / "averages" / "smoke"


def test_last_weights_of_averaged_runs_are_the_runs_without_an_average(records) -> None:
    found, _ = records
    for seed in (1, 2):
        single, member = found["single"][seed], found["members"][seed].groups[0]
        assert member["weight_hash"] == single.groups[0]["weight_hash"]
        assert member["log_loss"] == single.metrics["log_loss"]
        assert "average_hash" not in member
        assert found["averages"][seed].groups[0]["log_loss"] != member["log_loss"]
        of_member = [row["log_loss"] for row in found["members"][seed].evaluations if row["group"] == 0]
        assert of_member == [row["log_loss"] for row in single.evaluations]
        assert found["members"][seed].results["total_examples"] == single.results["total_examples"]
        assert found["members"][seed].results["flops"] == pytest.approx(single.results["flops"])


def test_a_mean_is_that_of_the_groups(records) -> None:
    found, runs = records
    for seed in (1, 2):
        root = runs / f"pair-s{seed}" / "predictions" / "validation"
        mean = np.mean([np.load(root / f"group-{n}.npy").astype(np.float64) for n in (0, 1)], axis=0)
        expected = binary_results(mean, np.load(root / "targets.npy"))
        assert found["pair_mean"][seed].metrics["log_loss"] == pytest.approx(expected["log_loss"])
        assert found["pair"][seed].metrics["log_loss"] != pytest.approx(expected["log_loss"])


def test_churn_is_between_what_each_system_reads(records) -> None:
    found, runs = records

    def loaded(seed: int, system: str, end: str) -> list[np.ndarray]:
        root = runs / f"{system}-s{seed}" / "predictions" / "validation"
        return [np.load(root / f"group-{n}{end}").astype(np.float64) for n in (0, 1)]

    def churn(system: str) -> float | None:
        return Retrains(list(found[system].values())).pairs((1, 2))[0, 1]["mean_abs_difference"]

    def expected(first: np.ndarray, second: np.ndarray) -> float:
        value = pair_metrics(first, second, form="binary")["mean_abs_difference"]
        assert value is not None
        return value

    last = [loaded(seed, "averages", "-last-weights.npy") for seed in (1, 2)]
    averages = [loaded(seed, "averages", ".npy") for seed in (1, 2)]
    pair = [loaded(seed, "pair", ".npy") for seed in (1, 2)]
    every = np.mean([expected(a, b) for a in last[0] for b in last[1]])
    assert churn("members") == pytest.approx(every)
    assert churn("ensemble") == pytest.approx(expected(*(np.mean(one, axis=0) for one in last)))
    assert churn("averages") == pytest.approx(expected(*(np.mean(one, axis=0) for one in averages)))
    assert churn("pair_mean") == pytest.approx(expected(*(np.mean(one, axis=0) for one in pair)))
    values = [churn(system) for system in found]
    assert all(a != pytest.approx(b) for a, b in combinations([v for v in values if v is not None], 2))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{label: a, runs_of: nowhere, weights: last}", "'nowhere' is unknown"),
        ("{label: a, runs_of: pair}", "say `weights: last`"),
        ("{label: a, weights: last}", "weights need `runs_of`"),
        ("{label: a, runs_of: pair_mean, weights: last}", "name pair"),
        ("{label: a, runs_of: pair, predictor: best}", "'best' is unknown"),
        ("{label: a, runs_of: pair, predictor: mean, overrides: [algorithm=sync]}", "no overrides"),
    ],
)
def test_readings_that_make_no_sense_are_refused(line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_recipe(RECIPE.replace("  pair_mean:", f"  other: {line}\n  pair_mean:"), name="averages")


def test_results_of_a_codistilled_run_say_how_good_its_mean_is(records) -> None:
    found, runs = records
    run = Run.open(runs / "pair-s1")
    assert run.results["mean_of_groups"]["log_loss"] == found["pair_mean"][1].metrics["log_loss"]
    assert "mean_of_groups" not in json.loads((runs / "averages-s1" / "results.json").read_text())
