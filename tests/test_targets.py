"""Steps to the baseline's losses, recipes that share runs, and an ensemble's own curve, with real runs where runs matter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from odist.claims.claim import Claim
from odist.claims.collect import records_of
from odist.claims.figure import paper_points
from odist.claims.page import build_report
from odist.claims.planned import planned_runs
from odist.claims.recipe import Recipe
from odist.claims.recipe_file import load_recipe, paper_file, parse_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines, update_lines
from odist.claims.reproduce import reproduce
from odist.claims.retrains import Copy, Retrains, retrains_by_system
from odist.claims.targets import (
    Target,
    curve_of,
    first_phase_steps,
    first_reach,
    target_parts,
    targets_of,
    times_to_targets,
)
from odist.claims.tune import tune
from odist.claims.verdicts import judge
from odist.errors import UserError
from odist.measure.churn import row_differences
from odist.run.folder import Run

RECIPE = """
title: T
reference: base
seeds: [1, 2]
metrics: [cross_entropy]
targets: {system: base, metric: cross_entropy}
systems:
  base: {label: Base}
  fast: {label: Fast}
  pupil: {label: Pupil, teachers: base}
scales: {smoke: {}}
"""


def recipe() -> Recipe:
    return parse_recipe(RECIPE, name="t")


def record(system: str, seed: int, losses: list[float], *, groups: int = 1, group: int = 0) -> Record:
    """A run of 100 steps an evaluation, 8 examples a step and group, a second a step."""
    rows = [
        {"group": group, "step": 100 * (i + 1), "seconds": 100.0 * (i + 1), "cross_entropy": loss}
        for i, loss in enumerate(losses)
    ]
    steps = 100 * len(losses)
    results = {"metrics": {"cross_entropy": losses[-1]}, "steps": steps, "total_examples": 8 * steps * groups,
               "groups": [{"seconds": float(steps)}] * groups}  # fmt: skip
    config = {"algorithm": {"teachers": [f"base-s{seed}-lr0.1"] if system == "pupil" else []}}
    return Record(system, seed, evaluations=rows, results=results, config=config)


def timed_systems(recipe: Recipe, records: list[Record]) -> dict[str, Retrains]:
    """The retrains of each system, with their steps to the baseline's targets."""
    found = retrains_by_system(records, recipe, timed=times_to_targets(recipe, records))
    return {system: own for (_, system), own in found.items()}


def targets(recipe: Recipe, records: list[Record]) -> list[Target]:
    return targets_of(recipe, timed_systems(recipe, records)["base"])


BASE = [5.0, 4.0, 3.5, 3.3, 3.2, 3.1, 3.1, 3.1]


def test_the_targets_are_the_means_of_the_baselines_over_seeds() -> None:
    records = [record("base", 1, BASE), record("base", 2, [v + 0.2 for v in BASE]), record("fast", 1, [1.0] * 8)]
    found = {target.name: target.value for target in targets(recipe(), records)}
    assert found == pytest.approx({"steps_to_50": 3.4, "steps_to_75": 3.2, "steps_to_85": 3.2})


def test_a_crossing_lies_on_the_line_between_two_evaluations() -> None:
    curve = curve_of(record("base", 1, BASE))
    assert first_reach(curve, metric="cross_entropy", target=3.75) == pytest.approx((250.0, 250.0))
    assert first_reach(curve, metric="cross_entropy", target=3.5) == pytest.approx((300.0, 300.0))
    assert first_reach(curve, metric="cross_entropy", target=6.0) == (100.0, 100.0)
    assert first_reach(curve, metric="cross_entropy", target=3.0) is None
    wavy = curve_of(record("base", 1, [5.0, 3.0, 4.0, 3.5]))
    assert first_reach(wavy, metric="cross_entropy", target=3.5) == pytest.approx((175.0, 175.0))


def test_steps_examples_and_seconds_are_metrics_and_what_is_never_reached_is_censored() -> None:
    slow = [v + 1.0 for v in BASE]
    found = timed_systems(
        recipe(), [record("base", 1, BASE), record("fast", 1, [3.0] * 8, groups=2), record("fast", 2, slow)]
    )
    assert found["base"].metric("steps_to_85", [1]) == pytest.approx([600])
    assert found["fast"].metric("steps_to_85", [1, 2]) == pytest.approx([100, 800])
    assert found["fast"].metric("examples_to_85", [1]) == pytest.approx([100 * 8 * 2])
    assert [found["fast"].num_censored(name, [2]) for name in ("steps_to_50", "steps_to_85")] == [1, 1]
    assert found["fast"].metric("steps_to_85", [2], longest=True) == [1600]
    assert found["base"].num_censored("steps_to_85", [1]) == found["fast"].num_censored("steps_to_85", [1]) == 0


def test_a_student_pays_for_its_teachers() -> None:
    records = [record("base", 1, BASE), record("pupil", 1, [3.0] * 8)]
    pupil = timed_systems(recipe(), records)["pupil"]
    assert pupil.metric("steps_to_85", [1]) == [900]
    assert pupil.metric("examples_to_85", [1]) == pytest.approx([900 * 8])
    assert [first_phase_steps(recipe(), one, records) for one in records] == [0, 800]
    alone = timed_systems(recipe(), [record("base", 2, BASE), record("pupil", 1, BASE)])["pupil"]
    assert not alone.has("steps_to_85", [1])


def test_the_mean_of_an_ensemble_is_its_curve() -> None:
    both = record("base", 1, BASE)
    both.evaluations.extend(record("base", 1, [2.0] * 8, group=-1).evaluations)
    assert [row["cross_entropy"] for row in curve_of(both)] == [2.0] * 8


ACCURATE = RECIPE.replace("cross_entropy", "top1")
RISING = [0.1, 0.3, 0.5, 0.6, 0.62, 0.7, 0.7, 0.7]


def accurate(system: str, seed: int, values: list[float]) -> Record:
    one = record(system, seed, values)
    for row in one.evaluations:
        row["top1"] = row.pop("cross_entropy")
    return replace(one, results=one.results | {"metrics": {"top1": values[-1]}})


def test_an_accuracy_is_reached_from_below() -> None:
    curve = accurate("base", 1, RISING).evaluations
    assert first_reach(curve, metric="top1", target=0.4) == pytest.approx((250.0, 250.0))
    assert first_reach(curve, metric="top1", target=0.6) == pytest.approx((400.0, 400.0))
    assert first_reach(curve, metric="top1", target=0.1) == (100.0, 100.0)
    assert first_reach(curve, metric="top1", target=0.71) is None
    assert first_reach(accurate("base", 1, [0.1, 0.5, 0.2]).evaluations, metric="top1", target=0.3) == (150.0, 150.0)


def test_the_table_of_accuracies_says_so_and_marks_what_never_gets_there() -> None:
    recipe = parse_recipe(ACCURATE, name="t")
    slow = [value - 0.2 for value in RISING]
    records = [
        accurate("base", 1, RISING),
        accurate("base", 2, RISING),
        accurate("fast", 1, [0.9] * 8),
        accurate("fast", 2, slow),
    ]
    found = timed_systems(recipe, records)
    assert {target.name: target.value for target in targets(recipe, records)} == pytest.approx(
        {"steps_to_50": 0.6, "steps_to_75": 0.7, "steps_to_85": 0.7}
    )
    assert found["base"].metric("steps_to_50", [1, 2]) == pytest.approx([400, 400])
    assert found["fast"].metric("steps_to_50", [1, 2]) == pytest.approx([100, 800])
    assert found["fast"].num_censored("steps_to_85", [1, 2]) == 1
    [heading, table] = target_parts(recipe, found)
    assert heading.startswith("Steps to the top-1 accuracy of Base at 50 %")
    assert "85 %: 0.7000" in heading
    assert "loss" not in heading
    assert "nats" not in heading
    assert "> 450 (1 of 2 never)" in table
    of_losses = parse_recipe(RECIPE, name="t")
    losses = target_parts(of_losses, timed_systems(of_losses, [record("base", 1, BASE)]))
    assert losses[0].startswith("Steps to the losses of Base")
    assert "3.1000 nats" in losses[0]


def test_targets_of_a_metric_that_was_not_recorded_are_refused() -> None:
    recipe = parse_recipe(ACCURATE, name="t")
    with pytest.raises(UserError, match="recipe t, targets: the runs have no metric 'top1' at every evaluation"):
        times_to_targets(recipe, [record("base", 1, BASE)])


@pytest.mark.parametrize(
    ("left", "relation", "options", "expected"),
    [
        ([0.76, 0.77, 0.765], ">", {}, "holds"),
        ([0.76, 0.77, 0.765], "<", {}, "does not hold"),
        ([0.73, 0.74, 0.735], ">", {}, "does not hold"),
        ([0.73, 0.79, 0.75], ">", {}, "not resolved"),
        ([0.76, 0.77, 0.765], ">", {"margin": 0.005}, "holds"),
        ([0.76, 0.77, 0.765], ">", {"margin": 0.03}, "does not hold"),
        ([0.76, 0.77, 0.765], ">", {"margin": 0.015}, "not resolved"),
        ([0.73, 0.74, 0.735], "<", {"margin": 0.002}, "holds"),
        ([0.73, 0.74, 0.735], "<", {"margin": 0.03}, "does not hold"),
        ([0.76, 0.77, 0.765], ">", {"factor": 1.01}, "holds"),
        ([0.76, 0.77, 0.765], ">", {"factor": 1.05}, "does not hold"),
        ([0.76, 0.77, 0.765], "within", {"margin": 0.03}, "holds"),
        ([0.76, 0.77, 0.765], "within", {"margin": 0.005}, "does not hold"),
    ],
)
def test_claims_on_accuracies(left: list[float], relation: str, options: dict[str, float], expected: str) -> None:
    sides = [
        Retrains([accurate(name, seed, [value]) for seed, value in enumerate(values)])
        for name, values in (("a", left), ("b", [0.746, 0.750, 0.745]))
    ]
    claim = Claim(id="x", text="", metric="top1", left="a", right="b", relation=relation, **options)
    assert judge(claim, sides=sides).verdict == expected


def test_the_papers_points_are_in_the_units_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text("system,step,top1_percent\nb,20,75.5\na,5,10\na,1,2\n")
    points = paper_points(path, metric="top1")
    assert {name: [step for step, _ in own] for name, own in points.items()} == {"a": [1, 5], "b": [20]}
    assert [value for own in (points["a"], points["b"]) for _, value in own] == pytest.approx([0.02, 0.1, 0.755])
    with pytest.raises(UserError, match=r"top1_percent, the recipe's targets are of cross_entropy.*cross_entropy_nats"):
        paper_points(path, metric="cross_entropy")
    path.write_text("system,step,cross_entropy_nats\na,5,4.5\n")
    assert paper_points(path, metric="cross_entropy") == {"a": [(5.0, 4.5)]}


def side(name: str, steps: list[float], *, never: tuple[int, ...] = ()) -> Retrains:
    """Runs of one copy with these steps to the target. never: places of those that never reached it, whose steps are a bound."""
    copies = {
        (name, seed, 0): Copy(0, {"steps_to_85": value}, {"steps_to_85": 2 * value} if seed in never else {})
        for seed, value in enumerate(steps)
    }
    return Retrains([record(name, seed, BASE) for seed in range(len(steps))], timed=copies)


def judged(left: list[float], right: list[float], relation: str, censored: str) -> str:
    everyone = tuple(range(len(left)))
    sides = [
        side(name, values, never=everyone if name in censored else ()) for name, values in (("a", left), ("b", right))
    ]
    return judge(
        Claim(id="x", text="", metric="steps_to_85", left="a", right="b", relation=relation), sides=sides
    ).verdict


@pytest.mark.parametrize(
    ("relation", "censored", "expected"),
    [("<", "", "holds"), ("<", "b", "holds"), ("<", "a", "not resolved"), (">", "", "does not hold"),
     (">", "b", "does not hold"), (">", "a", "not resolved"), ("<", "ab", "not resolved")],
)  # fmt: skip
def test_a_lower_bound_decides_only_what_it_can(relation: str, censored: str, expected: str) -> None:
    assert judged([100, 110, 105], [300, 310, 302], relation, censored) == expected


def test_ratios_with_lower_bounds_are_decided_where_the_bound_decides() -> None:
    factors = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 4.0}
    sides = [side(name, [factor * (100 + seed) for seed in range(3)]) for name, factor in factors.items()]
    claim = Claim(id="x", text="", metric="steps_to_85", left="a", right="b", relation=">", versus=("c", "d"))
    assert judge(claim, sides=sides).verdict == "holds"
    bounded = side("d", [4.0 * (100 + seed) for seed in range(3)], never=(0, 1, 2))
    assert judge(claim, sides=[*sides[:3], bounded]).verdict == "holds"  # a larger d only widens the gap
    bounded = side("c", [1.0 * (100 + seed) for seed in range(3)], never=(0, 1, 2))
    verdict = judge(claim, sides=[*sides[:2], bounded, sides[3]])
    assert (verdict.verdict, verdict.censored) == ("not resolved", True)


def test_the_table_marks_bounds() -> None:
    slow = [v + 1.0 for v in BASE]
    records = [record("base", 1, BASE), record("base", 2, BASE), record("fast", 1, BASE), record("fast", 2, slow)]
    [heading, table] = target_parts(recipe(), timed_systems(recipe(), records))
    assert "3.1000" in heading
    [fast] = [line for line in table.splitlines() if line.startswith("| Fast")]
    assert "> 700 (1 of 2 never)" in fast
    assert "< 0.857" in fast


SHARED = """
title: Shared
reference: sync
seeds: [1, 2]
metrics: [cross_entropy]
overrides: [task=lm, data=synthetic, train.max_examples=64, train.evaluate_every=16, train.evaluate_rows=null]
targets: {system: sync, metric: cross_entropy}
paper_figure: figure_lm_validation.csv
systems:
  sync: {label: sync, overrides: [algorithm=sync], paper_curve: sync_128}
  ensemble: {label: ensemble, overrides: [algorithm=ensemble, num_groups=2, train.keep_evaluations=true]}
  student: {label: student, overrides: [algorithm=distill], teachers: ensemble}
scales: {smoke: {systems: {ensemble: [optim.lr=0.01]}}}
"""
PAGE = """
runs_of: shared
title: Page
systems: [{systems}]
claims:
  - id: c
    text: C.
    statement: {{metric: steps_to_85, left: {left}, right: sync, relation: "<"}}
"""


def test_recipes_share_runs_records_and_students_follow_their_teachers(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SHARED)
    (tmp_path / "first.yaml").write_text(PAGE.format(systems="sync, ensemble", left="ensemble"))
    (tmp_path / "second.yaml").write_text(PAGE.format(systems="sync, ensemble, student", left="student"))
    places = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs", "jobs": 2}
    reproduce(tmp_path / "first.yaml", **places, echo=lambda text: None)
    assert len(read_lines(tmp_path / "reports/shared" / RUNS_FILE, Record).lines) == 4
    trained = {
        path: (path / "results.json").stat().st_mtime_ns for path in (tmp_path / "runs/shared/smoke").glob("*-s?")
    }
    lines: list[str] = []
    reproduce(tmp_path / "second.yaml", **places, echo=lines.append)
    assert {path: (path / "results.json").stat().st_mtime_ns for path in trained} == trained
    student = Run.open(tmp_path / "runs/shared/smoke/student-s2")
    assert [Path(path).name for path in student.config["algorithm"]["teachers"]] == [
        "ensemble-s1"
    ]  # of another seed than the student
    first, second = ((tmp_path / f"reports/{name}/{name}.md").read_text() for name in ("first", "second"))
    assert "student" not in first
    assert "student" in second
    assert "../shared/runs.jsonl" in second
    for name in ("first", "second"):
        folder = tmp_path / "reports" / name
        before = (folder / f"{name}.md").read_bytes(), (folder / f"{name}.svg").read_bytes()
        reproduce(tmp_path / f"{name}.yaml", **places, only_report=True, echo=lambda text: None)
        assert ((folder / f"{name}.md").read_bytes(), (folder / f"{name}.svg").read_bytes()) == before


def test_a_page_names_only_systems_that_are_shared(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SHARED)
    (tmp_path / "page.yaml").write_text(PAGE.format(systems="sync, ensembel", left="sync"))
    with pytest.raises(UserError, match="ensembel"):
        load_recipe(tmp_path / "page.yaml")
    (tmp_path / "lost.yaml").write_text(PAGE.replace("shared", "nowhere").format(systems="sync", left="sync"))
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(tmp_path / "lost.yaml")


def test_the_curve_of_an_ensemble_is_that_of_its_mean(train: Callable[..., Run]) -> None:
    run = train(
        "task=lm", "algorithm=ensemble", "num_groups=2", "train.keep_evaluations=true", "train.evaluate_rows=null",
        "train.max_examples=64", "train.evaluate_every=16",
    )  # fmt: skip
    rows = run.metrics(kind="evaluate")
    mean, members = rows[rows["group"] == -1], rows[rows["group"] >= 0]
    assert sorted(mean["step"]) == sorted(set(members["step"]))
    last = mean[mean["step"] == mean["step"].max()].iloc[0]
    assert last["cross_entropy"] == pytest.approx(run.results["metrics"]["cross_entropy"], abs=1e-9)
    for step, own in members.groupby("step"):  # the mean probability of two is never worse than the worse of them
        assert mean.set_index("step")["cross_entropy"][step] < own["cross_entropy"].mean()
    whole = run.predictions()
    assert last["cross_entropy"] == pytest.approx(-np.log(whole.probabilities).mean(), abs=1e-6)
    assert math.isfinite(last["cross_entropy"])
    assert not (run.path / "evaluations").exists()


TUNED = (
    SHARED
    + """
tuning: {key: optim.lr, grid: [0.01, 0.02, 0.04], seeds: [9], metric: cross_entropy, overrides: [data.holdout=tuning]}
"""
)


def test_a_system_tuned_with_another_has_no_trials_and_uses_its_value(tmp_path: Path) -> None:
    text = TUNED.replace("teachers: ensemble}", "teachers: ensemble, tuned_with: sync}")
    (tmp_path / "shared.yaml").write_text(text)
    (tmp_path / "page.yaml").write_text(PAGE.format(systems="sync, ensemble, student", left="student"))
    lines: list[str] = []
    tune(tmp_path / "shared.yaml", output=tmp_path / "reports", dry_run=True, echo=lines.append)
    assert len(lines) == 6
    assert not any("algorithm=distill" in line for line in lines)
    entries = {name: {"chosen": value, "at_edge": None, "batch": 8, "values": [], "settings": {}}
               for name, value in (("sync", 0.02), ("ensemble", 0.04))}  # fmt: skip
    found = {"key": "optim.lr", "metric": "cross_entropy", "seeds": [9], "overrides": [], "grid": [0.01, 0.02, 0.04],
             "systems": entries}  # fmt: skip
    path = tmp_path / "reports/shared/tuning.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": "odist-tuning-1", "recipe": "shared", "scales": {"smoke": {"all": found}}}))
    lines.clear()
    reproduce(tmp_path / "page.yaml", output=tmp_path / "reports", dry_run=True, echo=lines.append)
    students = [line for line in lines if "algorithm=distill" in line]
    assert len(students) == 2
    assert all("optim.lr=0.02" in line for line in students)


def test_a_variant_is_run_at_its_scales_only() -> None:
    text = RECIPE.replace("scales: {smoke: {}}", "scales: {smoke: {}, small: {}}")
    text += 'variants: {"": {}, quick: {scales: [smoke], overrides: [data=synthetic]}}\n'
    plans = {scale: planned_runs(parse_recipe(text, name="t"), scale, variables={})[0] for scale in ("smoke", "small")}
    assert {run.variant for run in plans["smoke"]} == {"", "quick"}
    assert {run.variant for run in plans["small"]} == {""}


def test_a_recipe_without_its_data_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    text = RECIPE.replace("scales: {smoke: {}}", "scales: {smoke: {}}\nvariants: {real: {needs: data_path}}\n")
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match="Add --data-path DIR"):
        reproduce(tmp_path / "t.yaml", output=tmp_path / "reports", runs_dir=tmp_path / "runs", echo=lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]


def test_a_page_is_not_tuned_and_a_student_needs_its_teachers(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(TUNED)
    (tmp_path / "page.yaml").write_text(PAGE.format(systems="sync, ensemble", left="ensemble"))
    with pytest.raises(UserError, match="odist tune shared"):
        tune(tmp_path / "page.yaml", output=tmp_path / "reports", echo=lambda text: None)
    (tmp_path / "page.yaml").write_text(PAGE.format(systems="sync, student", left="student"))
    with pytest.raises(UserError, match="system student, teachers: 'ensemble' is unknown"):
        load_recipe(tmp_path / "page.yaml")


IMAGES = """
title: Images
reference: sync
seeds: [1, 2]
metrics: [top1, top5, cross_entropy, calibration_error, mean_abs_difference]
overrides: [task=imagenet, data=synthetic, train.max_examples=96, train.evaluate_every=32, task.synthetic.validation_rows=40]
targets: {system: sync, metric: top1}
paper_figure: figure3_imagenet_validation.csv
systems:
  sync: {label: sync, overrides: [algorithm=sync], paper_curve: sync_16k}
claims:
  - {id: c, text: C., statement: {metric: steps_to_85, left: sync, right: sync, relation: "<"}}
scales: {smoke: {}}
"""


def test_a_recipe_of_images_reports_accuracies_churn_and_the_papers_points(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    recipe = parse_recipe(IMAGES, name="images")
    plan, _ = planned_runs(recipe, "smoke", variables={})
    runs = [train(*run.overrides, f"seed={run.seed}", name=run.name) for run in plan]
    folder = tmp_path / "images"
    update_lines(folder / RUNS_FILE, Record, write=records_of("images", plan, runs=runs))
    (folder / "recipe.yaml").write_text(IMAGES)
    (folder / "paper.csv").write_text(paper_file(recipe.paper_figure or ""))
    build_report(folder, name="images")
    table = (folder / "images.csv").read_text().splitlines()
    row = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    first, second = (run.predictions().probabilities for run in runs)
    assert first.shape[1] == 10
    assert float(row["mean_abs_difference"]) == pytest.approx(row_differences(first, second).mean())
    assert 0 < float(row["mean_abs_difference"]) < 1
    for metric in ("top1", "top5", "cross_entropy", "calibration_error"):
        assert float(row[metric]) == pytest.approx(np.mean([run.results["metrics"][metric] for run in runs]))
    page = (folder / "images.md").read_text()
    assert "| top-1 accuracy | top-5 accuracy | cross-entropy | calibration error | churn |" in page
    assert "half the sum over the classes of |p1 - p2|" in page
    assert "steps to the baseline's top-1 accuracy at 85 % of sync < sync" in page
    assert "nats" not in page
