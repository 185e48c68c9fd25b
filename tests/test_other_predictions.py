"""Systems of a recipe that read the runs of another: by the last weights, by the mean of the groups, by each copy alone.

And systems that are built on another one: taught by it, begun from its weights, compared with it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from odist.claims.churn_of_models import Predicting, churn_against
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
churn_against: single
seeds: [1, 2]
metrics: [log_loss, against_mean_abs_difference, mean_abs_difference]
overrides: [task=criteo, data=synthetic, train.evaluate_every=1000]
systems:
  single: {label: one model, overrides: [algorithm=sync]}
  averages: {label: two averages, overrides: [algorithm=ensemble, train.average=ema, train.average_horizon=400]}
  members: {label: each member, runs_of: averages, predictor: copies, weights: last}
  ensemble: {label: ensemble, runs_of: averages, weights: last}
  pair: {label: a pair, overrides: [algorithm=codistill]}
  pair_mean: {label: its mean, runs_of: pair, predictor: mean}
  later: {label: later rows, overrides: [algorithm=distill, data.first_row=500], teachers: single, starts_from: single}
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
        assert Record.NEWER[-1] in record.text  # as every record of a recipe with `churn_against`
        found.setdefault(record.system, {})[record.seed] = record
    assert len(result.commands) == 8  # nothing is trained for the other three
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


def test_a_run_is_compared_with_the_released_run_of_the_next_seed(records) -> None:
    """That is the one which teaches it, so the two share neither start nor order; every copy counts, and an ensemble's mean."""
    found, runs = records
    read = {
        "single": ("single", 1, ".npy", False),
        "later": ("later", 1, ".npy", False),
        "pair": ("pair", 2, ".npy", False),
        "pair_mean": ("pair", 2, ".npy", True),
        "averages": ("averages", 2, ".npy", True),
        "ensemble": ("averages", 2, "-last-weights.npy", True),
        "members": ("averages", 2, "-last-weights.npy", False),
    }

    def loaded(system: str, seed: int, group: int, end: str) -> np.ndarray:
        return np.load(runs / f"{system}-s{seed}" / "predictions" / "validation" / f"group-{group}{end}").astype(float)

    for system, (trained, groups, end, by_mean) in read.items():
        expected = []
        for seed, released in ((1, 2), (2, 1)):
            old = loaded("single", released, 0, ".npy")
            new = [loaded(trained, seed, group, end) for group in range(groups)]
            new = [np.mean(new, axis=0)] if by_mean else new
            expected.append(float(np.mean([np.abs(one - old).mean() for one in new])))
        retrains = Retrains(list(found[system].values()))
        assert retrains.metric("against_mean_abs_difference", (1, 2)) == pytest.approx(expected)
    of_later = found["later"][1].config
    assert (of_later["algorithm"]["teachers"], of_later["train"]["init_from"]) == (["single-s2"], "single-s2")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("churn_against: single", "churn_against: singel", "churn_against: 'singel' is unknown. Choose among: single"),
        ("churn_against: single\n", "", "against_mean_abs_difference needs `churn_against`"),
        ("against_mean_abs_difference", "against_churn", "'against_churn' is unknown"),
        ("starts_from: single", "starts_from: singel", "system later, starts_from: 'singel' is unknown"),
        ("starts_from: single", "starts_from: members", "starts_from: members is not trained by itself"),
    ],
)
def test_mistakes_in_what_a_system_is_built_on_are_named(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_recipe(RECIPE.replace(old, new), name="averages")


def test_runs_that_predict_other_rows_are_not_compared(records) -> None:
    _, runs = records
    former = Predicting.of(Run.open(runs / "single-s1"), None)
    with pytest.raises(UserError, match=r"single-s2 is to replace .*single-s1 but predicts different rows"):
        churn_against(Predicting.of(Run.open(runs / "single-s2"), None), replace(former, fingerprint="other"))


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
