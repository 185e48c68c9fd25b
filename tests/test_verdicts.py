"""Statistics of a page against oracles: copies within runs, censored speeds, p-values for many claims, margins that say nothing."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from odist.claims.churn_of_models import churn_of_models
from odist.claims.claim import Claim
from odist.claims.recipe import Recipe
from odist.claims.recipe_file import parse_recipe
from odist.claims.record import Record
from odist.claims.retrains import Retrains, retrains_by_system
from odist.claims.targets import times_to_targets
from odist.claims.verdicts import Verdict, judge, judge_all
from odist.errors import UserError
from odist.measure.churn import Form, pair_metrics, row_differences, without_shift
from odist.measure.intervals import holm, jackknife_estimate
from odist.run.folder import Run

HORIZON, SLOPE = 1000, 0.5
RECIPE = """
title: T
reference: base
seeds: [1, 2, 3, 4, 5]
metrics: [cross_entropy]
targets: {system: base, metric: cross_entropy}
systems:
  base: {label: Base}
  pair: {label: Pair}
  ensemble: {label: Ensemble}
claims: []
scales: {smoke: {}}
"""


def claims(*texts: str) -> Recipe:
    lines = "".join(f"\n  - {{id: c{number}, text: T., {text}}}" for number, text in enumerate(texts))
    return parse_recipe(RECIPE.replace("claims: []", f"claims:{lines}"), name="t")


def less(left: str, right: str, metric: str = "cross_entropy", **more: Any) -> str:
    options = "".join(f", {key}: {value}" for key, value in more.items() if key != "primary")
    primary = ", primary: true" if more.get("primary") else ""
    return f'statement: {{metric: {metric}, left: {left}, right: {right}, relation: "<"{options}}}{primary}'


def run(
    system: str, seed: int, losses: list[float], *, mean: float | None = None, hashes: list[str] | None = None
) -> Record:
    """The record of a run whose copies end at these losses. mean: of an ensemble, the loss of its mean prediction"""
    names = hashes or [f"{system}-{seed}-{number}" for number in range(len(losses))]
    groups = [
        {"cross_entropy": loss, "weight_hash": name, "seconds": 1.0} for loss, name in zip(losses, names, strict=True)
    ]
    results = {"metrics": {"cross_entropy": losses[0] if mean is None else mean}, "groups": groups, "steps": 10,
               "predictor": "group-0" if mean is None else "mean", "total_examples": 80}  # fmt: skip
    return Record(system, seed, results=results)


def test_p_values_adjusted_for_their_number_are_holms() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_p_of_a_difference_is_that_of_the_paired_t_test() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 6))
    estimate = jackknife_estimate(lambda places: float(np.mean((a - b)[places])), 6)
    assert estimate.p_value(estimate.value) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert estimate.interval() == pytest.approx([interval.low, interval.high])


def test_a_run_is_one_observation_and_its_copies_are_averaged() -> None:
    losses = {1: [3.0, 3.2], 2: [3.3, 3.1], 3: [3.15, 3.25]}
    pair = Retrains([run("pair", seed, own) for seed, own in losses.items()])
    base = Retrains([run("base", seed, [3.4 + seed / 100]) for seed in losses])
    claim = Claim(id="x", text="", metric="cross_entropy", left="pair", right="base", relation="<")
    verdict = judge(claim, sides=[pair, base])
    means = [np.mean(own) for own in losses.values()]
    interval = stats.ttest_rel(means, [3.41, 3.42, 3.43]).confidence_interval(0.95)
    assert verdict.interval == pytest.approx([interval.low, interval.high])
    assert pair.num_copies([1, 2, 3]) == 6


def test_members_of_an_ensemble_whose_first_is_the_single_model_are_its_retrains_and_count_once() -> None:
    records = []
    for seed in (1, 2, 3):
        records.append(run("base", seed, [3.0 + seed], hashes=[f"h{seed}"]))
        records.append(run("ensemble", seed, [3.0 + seed, 4.0 + seed], mean=2.0, hashes=[f"h{seed}", f"other{seed}"]))
    found = retrains_by_system(records, claims())
    assert found["", "base"].metric("cross_entropy", [1, 2, 3]) == [4.5, 5.5, 6.5]
    assert found["", "base"].num_copies([1, 2, 3]) == 6
    assert found["", "ensemble"].metric("cross_entropy", [1, 2, 3]) == [2.0, 2.0, 2.0]
    records[1].groups[0]["weight_hash"] = "trained at another rate"
    alone = retrains_by_system(records, claims())["", "base"]
    assert alone.metric("cross_entropy", [1, 2, 3]) == [4.0, 5.0, 6.0]


def predicted(folder: Path, predictions: list[np.ndarray], *, partition: str = "identical") -> Run:
    config = {"seed": 1, "num_groups": len(predictions), "data": {"partition": partition}}
    made = Run.create(folder, config, overrides=[], env={})
    root = made.prediction_root("validation")
    root.mkdir(parents=True)
    for number, one in enumerate(predictions):
        np.save(root / f"group-{number}.npy", one)
    np.save(root / "targets.npy", np.arange(len(predictions[0])) % 2)
    (root / "meta.json").write_text(f'{{"num_groups": {len(predictions)}, "predictor": "group-0", "fingerprint": "f"}}')
    return made


def test_churn_is_over_all_pairs_of_models_of_two_runs_and_never_inside_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((4, 50))
    first, second = predicted(tmp_path / "a", list(rows[:2])), predicted(tmp_path / "b", list(rows[2:]))
    found = churn_of_models(first, second)
    expected = np.mean([np.abs(a - b).mean() for a, b in product(rows[:2], rows[2:])])
    assert found is not None
    assert found["mean_abs_difference"] == pytest.approx(expected)
    assert churn_of_models(predicted(tmp_path / "c", [rows[0]]), predicted(tmp_path / "d", [rows[1]])) is None
    apart = [
        predicted(tmp_path / name, list(own), partition="disjoint") for name, own in (("e", rows[:2]), ("f", rows[2:]))
    ]
    of_parts = churn_of_models(*apart)
    assert of_parts is not None
    assert of_parts["mean_abs_difference"] == pytest.approx(np.abs(rows[:2] - rows[2:]).mean())


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def test_churn_without_shift_is_what_the_noise_alone_would_give() -> None:
    generator = np.random.default_rng(5)
    signal, noise = generator.normal(-1, 1.5, 4000), generator.normal(0, 0.3, (2, 4000))
    noise -= noise.mean(axis=1, keepdims=True)
    still = pair_metrics(sigmoid(signal), sigmoid(signal + 0.4), form=Form.binary)
    assert still["mean_abs_difference"] == pytest.approx(0.06, abs=0.02)
    assert still["churn_without_shift"] == pytest.approx(0.0, abs=1e-12)
    shifted = pair_metrics(sigmoid(signal + noise[0] - 0.2), sigmoid(signal + noise[1] + 0.2), form=Form.binary)
    alone = np.abs(sigmoid(signal + noise[0]) - sigmoid(signal + noise[1])).mean()
    assert shifted["churn_without_shift"] == pytest.approx(alone)
    assert shifted["mean_abs_difference"] > 1.2 * alone
    binary = [sigmoid(signal + one) for one in noise]
    classes = [np.stack([1 - p, p], axis=1) for p in binary]
    assert row_differences(*without_shift(*classes)) == pytest.approx(row_differences(*without_shift(*binary)))


def test_the_probability_of_the_correct_class_alone_has_no_churn_without_shift() -> None:
    p = np.random.default_rng(0).random((2, 30))
    assert pair_metrics(p[0], p[1], form=Form.label)["churn_without_shift"] is None


def curve(system: str, seed: int, offsets: list[float], *, speed: float = 1.0) -> Record:
    """Copies whose loss is 5 - SLOPE log2(speed * step) + offset, evaluated 20 times; so it needs 1 / speed of the steps."""
    one = run(system, seed, [0.0 for _ in offsets])
    for group, offset in enumerate(offsets):
        for step in range(HORIZON // 20, HORIZON + 1, HORIZON // 20):
            loss = 5 - SLOPE * math.log2(speed * step) + offset
            one.evaluations.append({"group": group, "step": step, "seconds": step / 10, "cross_entropy": loss})
    one.results["steps"] = HORIZON
    return one


def decide(recipe: Recipe, records: list[Record]) -> list[Verdict]:
    found = retrains_by_system(records, recipe, timed=times_to_targets(recipe, records))
    return judge_all(recipe, found, variant="")


def offsets(generator: np.random.Generator, number: int, sd: float = 0.02) -> list[float]:
    """Of the copies of a run: half of the variance is the run's own."""
    return list(generator.normal(0, sd * 0.7) + generator.normal(0, sd * 0.7, number))


@pytest.mark.parametrize(("speed", "factor", "expected"), [(1.5, 1.0, "holds"), (1.5, 0.5, "does not hold"), (0.8, 1.0, "does not hold"),
                                                          (0.5, 0.5, "does not hold"), (3.0, 0.5, "holds")])  # fmt: skip
def test_a_claim_about_speed_can_fail(speed: float, factor: float, expected: str) -> None:
    """Also where the slower system never reaches the target, whose steps are then a bound."""
    generator = np.random.default_rng(1)
    records = [curve("base", seed, offsets(generator, 1)) for seed in range(5)]
    records += [curve("pair", seed, offsets(generator, 2), speed=speed) for seed in range(5)]
    [verdict] = decide(claims(less("pair", "base", "steps_to_85", factor=factor)), records)
    assert verdict.verdict == expected
    assert bool(verdict.bounds) == (speed < 0.85)


def test_what_a_bound_cannot_decide_is_said_to_be_censored_and_not_missing() -> None:
    """A rival that is only just too slow is counted with its horizon, from which nothing follows for `less than 1.3 times`."""
    generator = np.random.default_rng(2)
    records = [curve("base", seed, offsets(generator, 1, 0.002)) for seed in range(5)]
    records += [curve("pair", seed, offsets(generator, 2, 0.002), speed=0.8) for seed in range(5)]
    [verdict] = decide(claims(less("pair", "base", "steps_to_85", factor=1.3)), records)
    assert (verdict.verdict, verdict.censored, verdict.p) == ("not resolved", True, None)
    assert [(bound.system, bound.never, bound.models) for bound in verdict.bounds] == [("pair", 10, 10)]
    assert verdict.difference is not None


@pytest.mark.parametrize("speed", [1.0, 0.86])
def test_no_more_than_a_twentieth_of_the_decisions_is_wrong(speed: float) -> None:
    """The claim's boundary is the truth, so every decision is a wrong one; with speed 0.86 some of the runs are censored."""
    generator, number, wrong, censored = np.random.default_rng(7), 150, 0, 0
    recipe = claims(less("pair", "base", "steps_to_85", factor=1 / speed))
    for _ in range(number):
        records = [curve("base", seed, offsets(generator, 1)) for seed in range(5)]
        records += [curve("pair", seed, offsets(generator, 2), speed=speed) for seed in range(5)]
        [verdict] = decide(recipe, records)
        wrong += verdict.verdict != "not resolved"
        censored += bool(verdict.bounds)
    assert wrong / number < 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)
    assert (censored > 0) == (speed < 1)


def test_the_interval_of_copies_within_runs_covers_the_truth() -> None:
    """Of 400 pages 95 % contain it, although half of the variance is common to the copies of a run."""
    generator, number, covered = np.random.default_rng(11), 400, 0
    claim = Claim(id="x", text="", metric="cross_entropy", left="pair", right="base", relation="<")
    for _ in range(number):
        pair = Retrains([run("pair", seed, [3 + value for value in offsets(generator, 3)]) for seed in range(5)])
        base = Retrains([run("base", seed, [3 + value for value in offsets(generator, 1)]) for seed in range(5)])
        interval = judge(claim, sides=[pair, base]).interval
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert abs(covered / number - 0.95) < 3 * math.sqrt(0.05 * 0.95 / number)


def ended(system: str, mean: float, sd: float) -> list[Record]:
    values = stats.norm.ppf((np.arange(5) + 0.5) / 5) * sd
    return [
        run(system, seed, [mean + value])
        for seed, value in enumerate(np.random.default_rng(int(mean * 1e4)).permutation(values))
    ]


def test_claims_are_judged_for_their_number_and_primary_ones_apart() -> None:
    records = [*ended("base", 3.0, 0.01), *ended("pair", 2.972, 0.01), *ended("ensemble", 2.0, 0.01)]
    untargeted = RECIPE.replace("targets: {system: base, metric: cross_entropy}\n", "")
    one, many = less("pair", "base"), less("base", "pair", factor=1.002)

    def judged(*texts: str) -> list[Verdict]:
        lines = "".join(f"\n  - {{id: c{number}, text: T., {text}}}" for number, text in enumerate(texts))
        return decide(parse_recipe(untargeted.replace("claims: []", f"claims:{lines}"), name="t"), records)

    [alone] = judged(one)
    assert alone.p is not None
    assert (alone.verdict, alone.adjusted) == ("holds", alone.p)
    assert 0.01 < alone.p < 0.05
    among = judged(one, many, many, many)
    assert among[0].adjusted == pytest.approx(4 * alone.p)
    assert among[0].verdict == "not resolved"
    primary = judged(less("pair", "base", primary=True), many, many, many)
    assert (primary[0].verdict, primary[0].adjusted) == ("holds", alone.p)


def test_a_page_has_two_primary_claims_at_most() -> None:
    claims(less("pair", "base", primary=True), less("ensemble", "base", primary=True))
    with pytest.raises(UserError, match=r"3 claims are primary \(c0, c1, c2\), a page has one or two"):
        claims(*[less("pair", "base", primary=True)] * 3)
    with pytest.raises(UserError, match="primary=yes please: expected true or false"):
        claims(less("pair", "base") + ", primary: yes please")


def test_a_margin_that_nothing_exceeds_is_not_tested_and_a_wide_one_is_marked() -> None:
    def verdict(margin: float) -> Verdict:
        statement = (
            f"statement: {{metric: cross_entropy, left: pair, right: ensemble, relation: within, margin: {margin}}}"
        )
        records = [*ended("base", 3.05, 0.001), *ended("pair", 3.01, 0.001), *ended("ensemble", 3.0, 0.001)]
        untargeted = RECIPE.replace("targets: {system: base, metric: cross_entropy}\n", "")
        recipe = parse_recipe(
            untargeted.replace("claims: []", f"claims:\n  - {{id: c, text: T., {statement}}}"), name="t"
        )
        return decide(recipe, records)[0]

    assert (verdict(0.02).verdict, verdict(0.02).near) == ("holds", None)
    assert verdict(0.03).near == pytest.approx(0.05)
    assert verdict(0.03).verdict == "holds"
    empty = verdict(0.06)
    assert (empty.verdict, empty.p) == ("not tested", None)
    assert empty.widest == pytest.approx(0.05)


def test_a_trend_is_the_slope_of_each_run_and_its_t_test() -> None:
    """Four systems at uneven places: the difference of the ends of the least-squares line, run by run."""
    text = RECIPE.replace("  ensemble: {label: Ensemble}", "  ensemble: {label: Ensemble}\n  four: {label: Four}")
    places = {"base": 0.0, "pair": 1.0, "ensemble": 3.0, "four": 4.0}
    along = "{base: 0, pair: 1, ensemble: 3, four: 4}"
    statement = f'statement: {{metric: cross_entropy, left: base, right: four, relation: ">", along: {along}}}'
    recipe = parse_recipe(recipe_text(text, statement), name="t")
    draw = np.random.default_rng(4).normal(loc=[3.0, 2.97, 2.96, 2.9], scale=0.02, size=(5, 4))
    records = [run(name, seed, [loss]) for seed, row in enumerate(draw) for name, loss in zip(places, row, strict=True)]
    [verdict] = judge_all(recipe, retrains_by_system(records, recipe), variant="")
    slopes = [stats.linregress(list(places.values()), row).slope for row in draw]
    assert verdict.difference == pytest.approx(-4 * np.mean(slopes))
    assert verdict.p == pytest.approx(stats.ttest_1samp(slopes, 0).pvalue)
    assert verdict.verdict == ("holds" if verdict.p < 0.05 else "not resolved")
    for old, new in (("pair: 1", "pair: 5"), ("base: 0, ", ""), ("relation", "factor: 2, relation")):
        with pytest.raises(UserError, match="along: "):
            parse_recipe(recipe_text(text, statement.replace(old, new)), name="t")


def recipe_text(text: str, statement: str) -> str:
    return text.replace("claims: []", f"claims:\n  - {{id: c0, text: T., {statement}}}")
