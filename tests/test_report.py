"""Recipes, records, summaries and report pages, from run folders made by hand."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import odist
from odist.claims.claim import Claim
from odist.claims.collect import records_of
from odist.claims.page import build_report
from odist.claims.planned import PlannedRun, planned_runs
from odist.claims.recipe_file import load_recipe, parse_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines, update_lines
from odist.claims.references import Against, Difference, FittedReference, read_reference
from odist.claims.retrains import Retrains, retrains_by_system
from odist.claims.summary import summarise
from odist.claims.table import csv_table, estimate, markdown_table
from odist.claims.verdicts import judge, verdict_of
from odist.errors import UserError
from odist.files import write_atomically
from odist.measure.exact import binary_results
from odist.run.folder import Run

PROJECT = Path(odist.__file__).parent.parent
ROWS = 400
TARGETS = (np.random.default_rng(0).random(ROWS) < 0.3).astype(np.int8)
RECIPE = """
title: Two systems
reference: plain
seeds: [1, 2, 3, 4]
metrics: [log_loss, mean_abs_difference]
overrides: [task=criteo, train.batch=8]
systems:
  plain: {label: Plain, overrides: [algorithm=sync], paper: {log_loss: [0.448, 0.001]}}
  steady: {label: Steady, overrides: [algorithm=codistill, train.batch=16]}
claims:
  - {id: a, text: Steady is steadier., statement: {metric: mean_abs_difference, left: steady, right: plain, relation: "<"}}
  - {id: b, text: Plain is steadier., statement: {metric: mean_abs_difference, left: plain, right: steady, relation: "<"}}
  - {id: c, text: Equal loss., statement: {metric: log_loss, left: steady, right: plain, relation: within, margin: 0.5}}
scales: {small: {}, smoke: {seeds: [1, 2], overrides: [train.batch=2], variables: {}}}
"""


def make_run(path: Path, *, seed: int, noise: float, algorithm: str = "sync", predictor: str = "group-0") -> Run:
    """A finished run: a common signal plus the seed's own noise."""
    logits = -1 + 1.5 * TARGETS + np.random.default_rng(1).normal(0, 1, ROWS)
    p = 1 / (1 + np.exp(-logits - np.random.default_rng(100 + seed).normal(0, noise, ROWS)))
    config = {"seed": seed, "scale": "small", "algorithm": {"name": algorithm}, "data": {"path": str(path / "data")}}
    hardware = {"cpu": "Example CPU", "cores": 2, "memory_gb": 8, "gpu": None}
    env = {"commit": "abc", "source_hash": "5e", "versions": {"torch": "2"}, "hardware": hardware, "config_hash": "c0"}
    run = Run.create(path, config | {"run": {"dir": str(path)}}, overrides=[], env=env)
    root = run.prediction_root("validation")
    root.mkdir(parents=True)
    np.save(root / "group-0.npy", p)
    np.save(root / "targets.npy", TARGETS)
    (root / "meta.json").write_text(json.dumps({"num_groups": 1, "predictor": "group-0", "fingerprint": "f00d"}))
    rows = [{"kind": "train", "group": 0, "step": 5, "examples": 40, "seconds": 0.5, "time": 1e9, "label_loss": 0.6}]
    for step in (10, 20, 30):
        row = {"kind": "evaluate", "group": 0, "step": step, "examples": 8 * step, "seconds": step / 10 + seed / 100}
        rows.append(row | {"time": 1.7e9 + step, "split": "validation", "log_loss": 0.7 - step / 100 + seed / 1000})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {"predictor": predictor, "metrics": binary_results(p, TARGETS), "examples_per_model": 240, "seconds": 3.2}
    run.write_json(
        "results.json",
        results | {"groups": [], "split": "validation", "total_examples": 480, "distinct_examples": 240, "flops": 3e9},
    )
    run.set_status(state="finished", step=30, num_steps=30)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report folder with a recipe and the records of eight runs."""
    planned, runs = [], []
    for system, noise, algorithm in (("plain", 0.6, "sync"), ("steady", 0.2, "codistill")):
        for seed in (1, 2, 3, 4):
            planned.append(PlannedRun("", system, seed, ()))
            runs.append(make_run(tmp_path / "runs" / planned[-1].name, seed=seed, noise=noise, algorithm=algorithm))
    report = tmp_path / "reports" / "two"
    update_lines(report / RUNS_FILE, Record, write=records_of("two", planned, runs=runs))
    write_atomically(report / "recipe.yaml", RECIPE)
    return report


def change(folder: Path, rewrite: Callable[[Record], Record | None]) -> None:
    """Replace every record of a report by what `rewrite` makes of it; None removes it."""
    found = read_lines(folder / RUNS_FILE, Record).lines
    changed = [new for record in found if (new := rewrite(record)) is not None]
    update_lines(folder / RUNS_FILE, Record, write=changed, remove=lambda _: True)


def test_the_report_is_the_same_bytes_twice_and_elsewhere(folder: Path, tmp_path: Path) -> None:
    written = build_report(folder, name="two")
    assert sorted(path.name for path in written) == ["manifest.json", "two.csv", "two.md", "two.svg"]
    first = {path.name: path.read_bytes() for path in written}
    assert {path.name: path.read_bytes() for path in build_report(folder, name="two")} == first
    (tmp_path / "copy" / "deep").mkdir(parents=True)
    for name in (RUNS_FILE, "recipe.yaml"):
        shutil.copy(folder / name, tmp_path / "copy" / "deep" / name)
    shutil.rmtree(tmp_path / "runs")
    again = build_report(tmp_path / "copy" / "deep", name="two")
    assert {path.name: path.read_bytes() for path in again} == first


def test_no_interval_of_a_report_leaves_what_the_metric_can_be(folder: Path) -> None:
    """Three retrains that differ widely: the intervals with two degrees of freedom would reach below 0 and beyond 1."""

    def three_that_differ(record: Record) -> Record | None:
        metrics = {"calibration_error": 0.02 * record.seed, "auc": 0.75 + 0.08 * record.seed}
        results = record.results | {"metrics": record.metrics | metrics}
        return replace(record, results=results) if record.seed <= 3 else None

    change(folder, three_that_differ)
    recipe = RECIPE.replace("metrics: [log_loss,", "metrics: [calibration_error, auc, log_loss,")
    write_atomically(folder / "recipe.yaml", recipe)
    build_report(folder, name="two")
    for row in csv.DictReader((folder / "two.csv").read_text().splitlines()):
        assert (row["calibration_error_low"], row["auc_high"]) == ("0.0", "1.0")
        assert 0.04 < float(row["calibration_error_high"]) < 1
        assert 0 < float(row["auc_low"]) < 0.91
    page = (folder / "two.md").read_text()
    assert "| 0.040 [0.000, 0.090] | 0.91 [0.71, 1.00] |" in page


def test_no_file_of_a_report_names_a_folder_of_the_machine(folder: Path, tmp_path: Path) -> None:
    build_report(folder, name="two")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert str(tmp_path) not in path.read_text(), path
        assert "17000000" not in path.read_text(), path  # the runs' clock
    assert (folder / RUNS_FILE).stat().st_size < 8 * 10_000


def test_the_numbers_of_the_report_are_those_of_the_runs(folder: Path, tmp_path: Path) -> None:
    build_report(folder, name="two")
    rows = {row["system"]: row for row in csv.DictReader((folder / "two.csv").read_text().splitlines())}
    runs = [Run.open(tmp_path / "runs" / f"plain-s{seed}") for seed in (1, 2, 3, 4)]
    losses = [run.results["metrics"]["log_loss"] for run in runs]
    assert float(rows["plain"]["log_loss"]) == pytest.approx(np.mean(losses))
    low, high = stats.t.interval(0.95, 3, np.mean(losses), stats.sem(losses))
    assert float(rows["plain"]["log_loss_low"]) == pytest.approx(low)
    assert float(rows["plain"]["log_loss_high"]) == pytest.approx(high)
    predictions = [run.predictions().probabilities for run in runs]
    churn = np.mean([np.abs(a - b).mean() for a, b in combinations(predictions, 2)])
    assert float(rows["plain"]["mean_abs_difference"]) == pytest.approx(churn)
    ratio = float(rows["steady"]["mean_abs_difference"]) / float(rows["plain"]["mean_abs_difference"])
    assert float(rows["steady"]["churn_ratio"]) == pytest.approx(ratio)
    assert float(rows["steady"]["churn_ratio_low"]) < ratio < float(rows["steady"]["churn_ratio_high"])
    page = (folder / "two.md").read_text()
    assert "| Plain | 4 |" in page
    assert "0.448 ± 0.001" in page
    assert "3e+09" in page
    assert "Example CPU" in page
    assert "odist reproduce two --scale small" in page
    assert "**holds**: Steady is steadier." in page
    assert "**does not hold**: Plain is steadier." in page
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["claims"]["all"] == {"a": "holds", "b": "does not hold", "c": "holds"}
    assert len(manifest["runs"]) == 8
    assert manifest["sources_differ"] is False


def test_runs_that_never_had_a_teacher_are_said(folder: Path) -> None:
    build_report(folder, name="two")
    assert "never had a teacher" not in (folder / "two.md").read_text()
    groups = [{"taught": True}, {"taught": False, "teacher_swaps": 0}]
    change(folder, lambda r: replace(r, results=r.results | {"groups": groups}) if r.name == "steady-s4" else r)
    build_report(folder, name="two")
    assert "never had a teacher, though they were to codistil: steady-s4." in (folder / "two.md").read_text()


def test_missing_runs_and_unlike_sources_are_said(folder: Path) -> None:
    change(folder, lambda record: None if record.name == "steady-s4" else record)
    change(folder, lambda r: replace(r, env=r.env | {"source_hash": "6f"}) if r.name == "plain-s1" else r)
    build_report(folder, name="two")
    page = (folder / "two.md").read_text()
    assert "Missing runs: steady-s4." in page
    assert "different versions of the source" in page
    assert json.loads((folder / "manifest.json").read_text())["sources"] == ["5e", "6f"]


def test_runs_that_were_never_there_at_once_have_no_churn_and_the_rest_is_reported(folder: Path) -> None:
    change(folder, lambda r: replace(r, churn={}, churn_of_models={}) if r.name == "steady-s1" else r)
    build_report(folder, name="two")
    with open(folder / "two.csv", newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert rows["plain"]["mean_abs_difference"]
    assert not rows["steady"]["mean_abs_difference"]
    assert rows["steady"]["log_loss"]


def test_a_report_without_records_and_records_of_another_version_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report of a recipe"):
        build_report(tmp_path / "nothing", name="two")
    with open(folder / RUNS_FILE, "a") as file:
        file.write('{"format": "other"}\n')
    with pytest.raises(UserError, match=r"runs.jsonl, line 9: not a line of this version \(odist-record-1\)"):
        build_report(folder, name="two")
    (folder / RUNS_FILE).unlink()
    with pytest.raises(UserError, match="no records of finished runs"):
        build_report(folder, name="two")


def test_retrains_of_other_rows_are_not_recorded_together(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"plain-s{seed}", seed=seed, noise=0.1) for seed in (1, 2)]
    meta = runs[1].prediction_root("validation") / "meta.json"
    meta.write_text(meta.read_text().replace("f00d", "beef"))
    with pytest.raises(UserError, match="different rows"):
        records_of("two", [PlannedRun("", "plain", s, ()) for s in (1, 2)], runs=runs)


def record(seed: int, log_loss: float, churn: dict[int, float], system: str = "a") -> Record:
    measures = ("root_mean_square", "flips", "relative_difference", "rank_correlation")
    pairs = {str(k): {"mean_abs_difference": v, **dict.fromkeys(measures, 0.5)} for k, v in churn.items()}
    return Record(system, seed, results={"metrics": {"log_loss": log_loss}}, churn=pairs)


def claim(metric: str, relation: str, **options: float) -> Claim:
    return Claim(id="x", text="", metric=metric, left="a", right="b", relation=relation, **options)


def test_a_metric_is_judged_by_the_paired_t_interval() -> None:
    a, b = [0.50, 0.52, 0.51, 0.55], [0.51, 0.54, 0.53, 0.56]
    sides = [Retrains([record(s, v, {}) for s, v in enumerate(values)]) for values in (a, b)]
    verdict = judge(claim("log_loss", "<"), sides=sides)
    paired = stats.ttest_rel(a, b)
    interval = paired.confidence_interval(0.95)
    assert verdict.interval == pytest.approx([interval.low, interval.high])
    assert verdict.verdict == "holds"
    assert judge(claim("log_loss", ">"), sides=sides).verdict == "does not hold"


def test_churn_is_judged_by_the_jackknife_over_common_seeds() -> None:
    generator = np.random.default_rng(0)
    tables = [{pair: generator.uniform(0.02, 0.03) for pair in combinations(range(5), 2)} for _ in range(2)]

    def side(table: dict[tuple[int, int], float], seeds: range) -> Retrains:
        return Retrains([record(s, 0.5, {o: table[min(s, o), max(s, o)] for o in seeds if o != s}) for s in seeds])

    verdict = judge(claim("mean_abs_difference", "<", factor=0.9), sides=[side(tables[0], range(4)),
                    side(tables[1], range(5))])  # fmt: skip

    def difference(seeds: list[int]) -> float:
        left, right = (np.mean([table[pair] for pair in combinations(seeds, 2)]) for table in tables)
        return float(left - 0.9 * right)

    deleted = np.array([difference([s for s in range(4) if s != omitted]) for omitted in range(4)])
    half = stats.t.ppf(0.975, 3) * np.sqrt(3 / 4 * np.sum((deleted - deleted.mean()) ** 2))
    value = difference([0, 1, 2, 3])
    assert verdict.interval == pytest.approx([value - half, value + half])
    assert verdict.num_seeds == 4
    two = judge(claim("mean_abs_difference", "<"), sides=[side(tables[0], range(2)), side(tables[1], range(2))])
    assert two.verdict == "not resolved"
    assert two.interval is None
    assert two.difference is not None
    assert judge(claim("log_loss", "<"), sides=[None, side(tables[1], range(2))]).verdict == "not resolved"


def ratio_side(system: str, table: dict[tuple[int, int], float], seeds: range) -> Retrains:
    return Retrains([record(s, 0.5, {o: table[min(s, o), max(s, o)] for o in seeds if o != s}, system) for s in seeds])


def test_two_ratios_of_churn_are_compared_with_the_jackknife_over_seeds() -> None:
    generator = np.random.default_rng(2)
    tables = [{pair: generator.uniform(*span) for pair in combinations(range(5), 2)}
              for span in ((0.020, 0.022), (0.030, 0.032), (0.028, 0.030), (0.030, 0.032))]  # fmt: skip
    sides = [ratio_side("a", table, range(5)) for table in tables]
    compared = replace(claim("mean_abs_difference", "<"), versus=("c", "d"))
    verdict = judge(compared, sides=sides)

    def mean(table: dict[tuple[int, int], float], seeds: list[int]) -> float:
        return float(np.mean([table[pair] for pair in combinations(seeds, 2)]))

    def difference(seeds: list[int]) -> float:
        return mean(tables[0], seeds) / mean(tables[1], seeds) - mean(tables[2], seeds) / mean(tables[3], seeds)

    deleted = np.array([difference([s for s in range(5) if s != omitted]) for omitted in range(5)])
    half = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * np.sum((deleted - deleted.mean()) ** 2))
    value = difference(list(range(5)))
    assert verdict.difference == pytest.approx(value)
    assert verdict.interval == pytest.approx([value - half, value + half])
    assert verdict.verdict == "holds"
    assert verdict.ratios is not None
    assert verdict.ratios[0][0] == pytest.approx(mean(tables[0], list(range(5))) / mean(tables[1], list(range(5))))
    assert judge(compared, sides=[sides[2], sides[3], sides[0], sides[1]]).verdict == "does not hold"
    assert judge(compared, sides=[*sides[:3], None]).verdict == "not resolved"
    equal = ratio_side("a", dict.fromkeys(tables[0], 0.0), range(5))
    assert judge(compared, sides=[sides[0], equal, sides[2], sides[3]]).difference is None


@pytest.mark.parametrize(
    ("relation", "interval", "expected"),
    [
        ("<", [-2, -1], "holds"),
        ("<", [-2, 1], "not resolved"),
        ("<", [1, 2], "does not hold"),
        (">", [1, 2], "holds"),
        (">", [-2, -1], "does not hold"),
        ("within", [-0.4, 0.3], "holds"),
        ("within", [-0.6, 0.3], "not resolved"),
        ("within", [0.6, 0.9], "does not hold"),
        ("<", None, "not resolved"),
    ],
)
def test_verdicts(relation: str, interval: list[float] | None, expected: str) -> None:
    assert verdict_of(claim("log_loss", relation, margin=0.5), interval) == expected


def test_a_single_run_has_a_mean_but_no_interval_or_churn() -> None:
    recipe = parse_recipe(RECIPE, name="two")
    [summary] = summarise(retrains_by_system([record(1, 0.5, {}, system="plain")], recipe), recipe)
    assert summary.metrics["log_loss"] == (0.5, None)
    assert summary.churn == {}
    assert summary.ratio == (None, None)


def test_the_plan_lets_the_later_override_win_and_knows_scales_and_variants() -> None:
    recipe = parse_recipe(RECIPE, name="two")
    small, _ = planned_runs(recipe, "small", variables={})
    assert len(small) == 8
    assert set(small[0].overrides) == {"scale=small", "task=criteo", "train.batch=8", "algorithm=sync"}
    assert set(small[-1].overrides) == {"scale=small", "task=criteo", "train.batch=16", "algorithm=codistill"}
    smoke, _ = planned_runs(recipe, "smoke", variables={})
    assert [run.name for run in smoke] == ["plain-s1", "plain-s2", "steady-s1", "steady-s2"]
    assert "train.batch=2" in smoke[0].overrides
    with pytest.raises(UserError, match=r"no scale 'paper'. Choose among: small, smoke"):
        planned_runs(recipe, "paper", variables={})
    text = RECIPE + "variants: {made: {}, real: {needs: data_path, overrides: ['data.path=${data_path}']}}\n"
    runs, left_out = planned_runs(parse_recipe(text, name="two"), "smoke", variables={})
    assert left_out == {"real": "data_path"}
    assert {run.variant for run in runs} == {"made"}
    runs, left_out = planned_runs(parse_recipe(text, name="two"), "smoke", variables={"data_path": "store"})
    assert left_out == {}
    assert "data.path=store" in runs[-1].overrides
    assert runs[-1].name == "real-steady-s2"


@pytest.mark.parametrize("name", [path.stem for path in sorted(Path(__file__).parent.parent.glob("recipes/*.yaml"))])
def test_every_recipe_of_the_project_is_sound_and_plans_every_scale(name: str) -> None:
    recipe = load_recipe(name)
    for scale in recipe.scales:
        runs, left_out = planned_runs(recipe, scale, variables={"data_path": "store"})
        assert runs
        assert not left_out
        assert len({run.name for run in runs}) == len(runs)
        assert not any("$" in line for run in runs for line in run.overrides)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Two systems", "", "recipe two: lacks title"),
        ("title:", "titel:", "unknown key 'titel'. Did you mean title"),
        ("seeds: [1, 2, 3, 4]", "seeds: 4", "seeds=4: expected a list"),
        ("title: Two systems", "title: Two systems\nvariants: {}", "variants is empty"),
        ("left: steady, right", "right", "claims.a.statement: lacks left"),
        (
            "label: Plain, overrides: [algorithm=sync]",
            "label: Plain, overrides: algorithm=sync",
            "systems.plain.overrides=alg",
        ),
        ("metrics: [", "metrix: []\nmetrics: [", "unknown key 'metrix'. Did you mean metrics"),
        ("reference: plain", "reference: plane", "'plane' is unknown. Choose among: plain, steady"),
        ("seeds: [1, 2, 3, 4]", "seeds: [1, 1]", "different whole numbers"),
        ("relation: within, margin: 0.5", "relation: within", "needs a margin"),
        ("left: steady", "left: stead", "claim a, left: 'stead' is unknown"),
        ("overrides: [train.batch=2]", "systems: {none: []}", "scales smoke, systems: 'none' is unknown"),
        ("{id: b,", "{id: b, requires: d,", "claim b, requires: 'd' is unknown. Choose among: a, b, c"),
        ("{id: b,", "{id: b, requires: b,", "claim b, requires: b -> b is a circle"),
        ("{id: b,", "{id: a,", "each claim needs an id of its own, got a, a, c"),
        ("margin: 0.5", "margin: 0.5, requires: a", "unknown key 'requires'"),
        ('relation: "<"}', 'relation: "<", margin: -1}', "a margin is 0 or more, got -1"),
    ],
)
def test_mistakes_in_a_recipe_are_named(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(UserError, match=message):
        parse_recipe(RECIPE.replace(old, new, 1), name="two")


def with_requirements(**requires: str) -> str:
    """The recipe with claims that require others."""
    text = RECIPE
    for name, other in requires.items():
        text = text.replace(f"{{id: {name},", f"{{id: {name}, requires: {other},")
    return text


def test_claims_that_require_each_other_in_a_circle_are_refused() -> None:
    with pytest.raises(UserError, match="claim a, requires: a -> c -> b -> a is a circle"):
        parse_recipe(with_requirements(a="c", c="b", b="a"), name="two")
    with pytest.raises(UserError, match="claim b, requires: b -> c -> b is a circle"):
        parse_recipe(with_requirements(a="b", b="c", c="b"), name="two")


@pytest.mark.parametrize(
    ("requires", "expected"),  # alone: a holds, b does not hold, c holds
    [
        ({"a": "c", "c": "a"}, None),
        ({"a": "c"}, {"a": "holds", "b": "does not hold", "c": "holds"}),
        ({"b": "c"}, {"a": "holds", "b": "does not hold", "c": "holds"}),
        ({"a": "b"}, {"a": "not tested", "b": "does not hold", "c": "holds"}),
        ({"a": "c", "c": "b"}, {"a": "not tested", "b": "does not hold", "c": "not tested"}),
        ({"b": "a", "a": "c"}, {"a": "holds", "b": "does not hold", "c": "holds"}),
    ],
)
def test_a_claim_is_tested_only_where_the_one_that_it_requires_holds(
    folder: Path, requires: dict[str, str], expected: dict[str, str] | None
) -> None:
    write_atomically(folder / "recipe.yaml", with_requirements(**requires))
    if expected is None:
        with pytest.raises(UserError, match="circle"):
            build_report(folder, name="two")
        return
    build_report(folder, name="two")
    assert json.loads((folder / "manifest.json").read_text())["claims"]["all"] == expected


def test_the_page_says_why_a_claim_was_not_tested(folder: Path) -> None:
    build_report(folder, name="two")
    assert "not tested" not in (folder / "two.md").read_text()
    write_atomically(folder / "recipe.yaml", with_requirements(c="a", a="b"))
    build_report(folder, name="two")
    page = (folder / "two.md").read_text()
    assert "- **not tested**: Steady is steadier. (It requires the claim `b`, which does not hold. churn of " in page
    assert "- **not tested**: Equal loss. (It requires the claim `a`, which is not tested. log loss of " in page
    assert "- **does not hold**: Plain is steadier. (churn of " in page
    assert "A claim that requires another is not tested where that one does not hold." in page


def test_a_deciding_claim_that_requires_another_has_a_sentence_for_not_tested() -> None:
    decision = "decision: {claim: a, holds: Yes., does not hold: No., not resolved: Perhaps.}\n"
    assert parse_recipe(RECIPE + decision, name="two").decision is not None
    with pytest.raises(UserError, match="decision: lacks not tested"):
        parse_recipe(with_requirements(a="b") + decision, name="two")
    recipe = parse_recipe(with_requirements(a="b") + decision.replace("}", ", not tested: Unasked.}"), name="two")
    assert recipe.decision is not None
    assert recipe.decision.text["not tested"] == "Unasked."


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no recipe 'demonstration'.*criteo_table1, demo"):
        load_recipe("demonstration")


def test_numbers_are_written_to_the_precision_of_their_interval() -> None:
    assert estimate(0.44801, [0.44701, 0.44902]) == "0.4480 [0.4470, 0.4490]"
    assert estimate(-0.0123, [-0.02, 0.001], sign=True) == "-0.012 [-0.020, +0.001]"
    assert estimate(None) == "–"
    assert estimate(0.5) == "0.50000"
    assert estimate(float("nan")) == "nan"
    table = markdown_table({"a": "A", "b": "B"}, [{"a": "x|y"}])
    assert table == "| A | B |\n| --- | --- |\n| x\\|y | – |\n"
    assert csv_table([{"a": 1.5}, {"a": None, "b": "x,y"}]) == 'a,b\n1.5,\n,"x,y"\n'


MORE = """
variants:
  made: {label: Made, without: [steady]}
  real: {label: Real, references: {logistic: {label: straight line, system: plain, margin: 0.05}}}
decision: {claim: r, holds: Rows decide., does not hold: Rows do not decide., not resolved: Nobody knows.}
tuning: {key: optim.lr, grid: [0.1, 0.2, 0.4], seeds: [11], metric: log_loss, overrides: [data.holdout=tuning]}
"""
RATIO = '  - {id: r, text: Ratios., statement: {metric: mean_abs_difference, left: steady, right: plain, relation: "<", versus: [plain, plain]}}\n'


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A report folder with two variants, a reference, a decision and no tuning."""
    planned, runs = [], []
    for variant, system, noise in (("made", "plain", 0.6), ("real", "plain", 0.6), ("real", "steady", 0.2)):
        for seed in (1, 2, 3, 4):
            planned.append(PlannedRun(variant, system, seed, ()))
            runs.append(make_run(tmp_path / "runs" / planned[-1].name, seed=seed, noise=noise))
    report = tmp_path / "reports" / "two"
    update_lines(report / RUNS_FILE, Record, write=records_of("two", planned, runs=runs))
    write_atomically(report / "recipe.yaml", RECIPE.replace("scales:", RATIO + "scales:") + MORE)
    return report


def test_a_requirement_outside_the_variant_leaves_a_claim_untested(wide: Path) -> None:
    alone = "  - {id: l, text: Low., requires: a, statement: {metric: log_loss, left: plain, right: plain, relation: within, margin: 1}}\n"
    text = (wide / "recipe.yaml").read_text()
    write_atomically(wide / "recipe.yaml", text.replace("scales:", alone + "scales:", 1))
    build_report(wide, name="two")
    made, real = (wide / "two.md").read_text().split("## Made")[1].split("## Real")
    assert "- **not tested**: Low. (It requires the claim `a`, which is not part of this variant. log loss of " in made
    assert "- **holds**: Low. (log loss of " in real


def test_the_page_opens_with_the_decision_and_leaves_out_what_a_variant_lacks(wide: Path) -> None:
    build_report(wide, name="two")
    page = (wide / "two.md").read_text()
    made, real = page.split("## Made")[1].split("## Real")
    assert "Steady" not in made
    assert "Missing runs" not in page
    assert "**Verdict.** Rows decide. (churn of Steady / Plain = 0." in real
    assert "Verdict" not in made
    manifest = json.loads((wide / "manifest.json").read_text())
    assert manifest["claims"]["made"] == {}
    assert manifest["claims"]["real"]["r"] == "holds"


def test_a_system_is_held_against_its_reference(wide: Path, tmp_path: Path) -> None:
    build_report(wide, name="two")
    assert "Reference straight line: not fitted." in (wide / "two.md").read_text()
    runs = [Run.open(tmp_path / "runs" / f"real-plain-s{seed}") for seed in (1, 2, 3, 4)]
    losses = [run.results["metrics"]["log_loss"] for run in runs]
    against = Against("plain", {}, Difference(float(np.mean(losses)) - 0.5, [-0.3, 0.3]))
    options = {"lr": 0.04, "l2": 1e-4, "passes": 2}
    for level, expected in ((max(losses) + 0.01, "holds"), (min(losses) - 0.1, "does not hold")):
        metrics = {"log_loss": level, "log_loss_interval": [level - 0.01, level + 0.01]}
        env = {"commit": "abc"}
        FittedReference(
            "two", "real", "logistic", options, [{}] * 9, ["passes"], metrics, "f00d", against=against, env=env
        ).write(wide)
        build_report(wide, name="two")
        page = (wide / "two.md").read_text()
        assert f"| straight line (interval over rows) | – | {estimate(level, [level - 0.01, level + 0.01])} |" in page
        difference = [loss - level for loss in losses]
        interval = stats.t.interval(0.95, 3, np.mean(difference), stats.sem(difference))
        assert f"- **{expected}**: The mean log loss of Plain is at or below the reference's" in page
        assert f"difference {estimate(float(np.mean(difference)), interval, sign=True)} over retrains" in page
        assert f"- **{expected}**: Every retrain of Plain is within 0.05 of it" in page
        assert f"largest difference {max(difference):+.5f}" in page
        assert "at the edge of what was tried: passes" in page


def test_the_committed_reference_is_written_as_it_was_read(tmp_path: Path) -> None:
    report = PROJECT / "reports" / "criteo_table1"
    fitted = read_reference(report, variant="real", name="logistic")
    assert fitted is not None
    path = fitted.write(tmp_path)
    assert path.read_bytes() == (report / path.relative_to(tmp_path)).read_bytes()
    path.write_text(path.read_text().replace('"at_edge"', '"at_the_edge"'))
    with pytest.raises(UserError, match=r"unknown key 'at_the_edge'. Did you mean at_edge\?.*Delete it"):
        read_reference(tmp_path, variant="real", name="logistic")


def test_the_page_says_how_settings_were_tuned_or_that_they_were_not(wide: Path) -> None:
    build_report(wide, name="two")
    page = (wide / "two.md").read_text()
    assert page.count("**Untuned: every system used the preset's `optim.lr`.**") == 2
    settings = {"scale": "small", "algorithm.name": "sync", "data.first_row": 0}  # younger than the records
    values = [{"value": v, "mean": m, "by_seed": {"11": m}} for v, m in ((0.1, 0.5), (0.2, 0.4), (0.4, None))]
    entry = {"chosen": 0.2, "at_edge": None, "batch": 8, "values": values, "settings": settings}
    odd = {**entry, "chosen": 0.1, "at_edge": "low", "settings": {**settings, "train.batch": 9, "algorithm.ramp": 5}}
    found = {"key": "optim.lr", "metric": "log_loss", "seeds": [11], "overrides": ["data.holdout=tuning"]}
    found |= {"grid": [0.1, 0.2, 0.4], "systems": {"plain": entry, "steady": odd}}
    tuning = {"format": "odist-tuning-1", "recipe": "two", "scales": {"small": {"real": found}}}
    (wide / "tuning.json").write_text(json.dumps(tuning))
    change(wide, lambda r: replace(r, config=r.config | {"optim": {"lr": 0.2}}) if r.variant == "real" else r)
    build_report(wide, name="two")
    page = (wide / "two.md").read_text()
    made, real = page.split("## Made")[1].split("## Real")
    assert "Untuned" in made
    assert "Untuned" not in real
    assert "| Plain | 8 | 0.50000 | **0.40000** | diverged |" in page
    assert "| Steady | 8 | **0.50000** | 0.40000 | diverged |" in page
    assert "Steady ran with `optim.lr` 0.2, tuning chose 0.1." in real
    assert "Steady was tuned with other settings than it ran with: algorithm.ramp, train.batch." in real
    assert "the `optim.lr` of Steady lies at the low edge" in real
    assert "Plain ran with" not in real


SIZED = RECIPE.replace("{label: Plain,", '{label: "SGD, {batch}", paper_label: 128 workers,')


def test_labels_say_what_was_run_and_what_the_paper_ran_beside_it(folder: Path) -> None:
    sizes = {"train": {"batch": 8}, "workers": 4}
    change(folder, lambda r: replace(r, config=r.config | sizes) if r.system == "plain" else r)
    write_atomically(folder / "recipe.yaml", SIZED)
    build_report(folder, name="two")
    page, drawn = (folder / "two.md").read_text(), (folder / "two.svg").read_text()
    assert "| SGD, 4 workers of 8 (paper: 128 workers) | 4 |" in page
    assert "(churn of Steady < SGD, 4 workers of 8: difference" in page
    assert "<!-- SGD, 4 workers of 8 (paper: 128 workers) -->" in drawn.replace("\xa0", " ")
    with pytest.raises(UserError, match=r"system plain, label: 'bach' is unknown\. Choose among: batch, reload"):
        parse_recipe(SIZED.replace("{batch}", "{bach}"), name="two")


@pytest.mark.parametrize("page", sorted((PROJECT / "reports").glob("lm*/*.md")), ids=lambda path: path.stem)
def test_committed_tables_name_no_workers_that_were_not_run(page: Path) -> None:
    tables = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    for line in tables:
        label = re.sub(r" \(paper: [^)]*\)", "", line.split(" | ")[0])
        assert not re.search(r"128|256|\b50\b|100|250|SGD, \d", label), line


def test_a_system_looks_the_same_in_every_panel_of_a_report(folder: Path) -> None:
    """In the second variant the first system is missing; the other keeps its colour."""
    recipe = RECIPE + "variants: {one: {}, two: {without: [plain]}}\n"
    write_atomically(folder / "recipe.yaml", recipe)
    records = read_lines(folder / RUNS_FILE, Record).lines
    inside = [("one", record) for record in records]
    inside += [("two", record) for record in records if record.system == "steady"]
    placed = [replace(record, variant=variant) for variant, record in inside]
    update_lines(folder / RUNS_FILE, Record, write=placed, remove=lambda _: True)
    build_report(folder, name="two")
    panels = re.split(r'<g id="(?:axes|legend)_\d+">', (folder / "two.svg").read_text())[1:5]
    drawn = [set(re.findall(r"#(?!000000|ffffff|dddddd)[0-9a-f]{6}", panel)) for panel in panels]
    assert drawn[0] == drawn[1] == {"#0072b2", "#009e73"}
    assert drawn[2] == drawn[3] == {"#009e73"}
    said = (folder / "two.svg").read_text()
    assert "Lines: means over 4 seeds; bands: from the lowest to the highest seed." in said
    assert "Bars: 95 % intervals over retrains." in said
