"""Runs that a recipe adds to those of its tables: a frontier of one setting, seeds until an interval is narrow enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from odist.claims.frontier import frontier_lines
from odist.claims.index import build_index
from odist.claims.judged import read_judged
from odist.claims.recipe_file import parse_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines
from odist.claims.reproduce import reproduce
from odist.errors import UserError
from odist.run.folder import Run

RECIPE = """
title: Tiny
reference: dnn
seeds: [1, 2]
metrics: [log_loss, mean_abs_difference, churn_without_shift]
overrides: [task=criteo, data=synthetic, optim=sgd, optim.lr=0.5, train.max_examples=200, task.synthetic.validation_rows=200]
systems:
  dnn: {label: One network, overrides: [algorithm=sync]}
claims:
  - id: c
    text: C.
    statement: {metric: churn_without_shift, left: dnn, right: dnn, relation: "<"}
frontier: {key: optim.lr, values: [0.5, 1.0]}
scales: {smoke: {}}
"""


def test_a_frontier_is_run_recorded_drawn_and_kept_out_of_the_tables(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    places = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs"}
    lines: list[str] = []
    done = reproduce(tmp_path / "tiny.yaml", **places, jobs=2, echo=lines.append)
    folders = sorted(path.parent.name for path in (tmp_path / "runs").rglob("results.json"))
    assert folders == ["dnn-lr1-s1", "dnn-lr1-s2", "dnn-s1", "dnn-s2"]  # 0.5 is the tables' own value
    assert len(done.commands) == 4
    names = [record.name for record in read_lines(done.folder / RUNS_FILE, Record).lines]
    assert names == ["dnn-lr0.5-s1", "dnn-lr0.5-s2", "dnn-lr1-s1", "dnn-lr1-s2", "dnn-s1", "dnn-s2"]
    judged = read_judged(done.folder, name="tiny")
    assert len(judged.records) == 2
    [points] = frontier_lines(judged.recipe, judged.frontier, variant="").values()
    assert [point.value for point in points] == [0.5, 1.0]
    for point, start in zip(points, ("dnn-s", "dnn-lr1-s"), strict=True):
        runs = [Run.open(tmp_path / "runs/tiny/smoke" / f"{start}{seed}") for seed in (1, 2)]
        assert point.loss == pytest.approx(np.mean([run.results["metrics"]["log_loss"] for run in runs]))
        first, second = (run.predictions().probabilities for run in runs)
        assert point.churn == pytest.approx(np.abs(first - second).mean())
    page = (done.folder / "tiny.md").read_text()
    assert "Churn; log loss, at each `optim.lr`:" in page
    assert "| One network | 2 |" in page
    assert "churn without shift" in page
    before = (done.folder / "tiny.svg").read_bytes()
    reproduce(tmp_path / "tiny.yaml", **places, only_report=True, echo=lines.append)
    assert (done.folder / "tiny.svg").read_bytes() == before
    assert build_index(tmp_path / "reports")[0].is_file()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0.5, 1.0]", "[0.5]", "two or more different values"),
        ("[0.5, 1.0]", "[0.5, 0.5]", "two or more different values"),
        ("values: [0.5, 1.0]", "values: [0.5, 1.0], systems: [dn]", "frontier, systems: 'dn' is unknown"),
        ("key: optim.lr", "keys: optim.lr", "key"),
    ],
)
def test_mistakes_in_a_frontier_are_named(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(UserError, match=message):
        parse_recipe(RECIPE.replace(old, new, 1), name="tiny")


UNTIL = (
    RECIPE.split("frontier:")[0]
    .replace("left: dnn, right: dnn", "left: wide, right: dnn")
    .replace("claims:", "  wide: {label: Wide, overrides: [algorithm=sync, train.batch=100]}\nclaims:")
)


@pytest.mark.parametrize(
    ("width", "at_most", "expected"), [(5.0, 6, 3), pytest.param(1e-12, 4, 4, marks=pytest.mark.slow)]
)
def test_seeds_are_added_until_the_interval_is_narrow_or_there_are_as_many_as_may_be(
    tmp_path: Path, width: float, at_most: int, expected: int
) -> None:
    rule = f"seeds_until: {{claim: c, width: {width}, at_most: {at_most}}}\nscales: {{smoke: {{}}}}\n"
    (tmp_path / "tiny.yaml").write_text(UNTIL + rule)
    places = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs", "jobs": 2}
    lines: list[str] = []
    done = reproduce(tmp_path / "tiny.yaml", **places, echo=lines.append)
    judged = read_judged(done.folder, name="tiny")
    assert {len(own.seeds) for own in judged.retrains.values()} == {expected}
    assert "tiny: the interval of c has none yet: seed 3 is added" in lines
    assert any("more than 1e-12: seed 4 is added" in line for line in lines) == (expected == 4)
    assert len(done.commands) == 2 * expected


def test_mistakes_in_the_rule_for_seeds_are_named() -> None:
    rule = "seeds_until: {claim: c, width: 1, at_most: 4}\nscales: {smoke: {}}\n"
    assert parse_recipe(UNTIL + rule, name="tiny").seeds_until is not None
    with pytest.raises(UserError, match="'d' is unknown"):
        parse_recipe(UNTIL + rule.replace("claim: c", "claim: d"), name="tiny")
    with pytest.raises(UserError, match="width is above 0"):
        parse_recipe(UNTIL + rule.replace("width: 1", "width: 0"), name="tiny")
    with pytest.raises(UserError, match="cannot be added one at a time"):
        parse_recipe(UNTIL.replace("{label: Wide,", "{label: Wide, teachers: dnn,") + rule, name="tiny")
