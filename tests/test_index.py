"""The page of all reports and README's table: current, the same bytes each time, whole, and right where a row is not run."""

from __future__ import annotations

import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov

import odist
from odist.claims.effects import effect_of
from odist.claims.index import FILE, Index, answer, build_index, markdown, read_index, with_table
from odist.claims.index_page import html
from odist.claims.paper_rows import ClaimPlace, place_of, read_paper_rows
from odist.claims.theory import churn_of_copy, churn_of_ensemble
from odist.errors import UserError

ROOT = Path(odist.__file__).parent.parent
REPORTS = ROOT / "reports"
VOID = {"meta", "link", "br", "img"}


@pytest.fixture(scope="module")
def index() -> Index:
    return read_index(REPORTS)


@pytest.fixture(scope="module")
def page(index: Index) -> str:
    return html(index)


def test_the_committed_page_and_the_table_of_readme_are_current(index: Index, page: str) -> None:
    """`odist index --readme README.md` renews both."""
    assert (REPORTS / FILE).read_text(encoding="utf-8") == page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, markdown(index, reports="reports")) == readme


def test_every_row_of_the_papers_checklist_is_there_once(index: Index, page: str) -> None:
    expected = [f"L{n}" for n in range(1, 12)] + [
        "I1",
        "I2",
        "I3",
        "C1",
        "C2",
        "C3",
        "X1",
        "R1",
        "G1",
        "G2",
        "G3",
        "G4",
        "G5",
        "G6",
        "G7",
        "G8",
        "G9",
        "G10",
        "G11",
        "G12",
    ]
    assert [row.row.id for row in index.rows] == expected
    assert re.findall(r'<th scope="row"[^>]*>([A-Z]\d+)</th>', page) == expected
    assert all(row.command for row in index.rows)


class Checker(HTMLParser):
    """Every element closed in order, nothing loaded from elsewhere; links and identifiers collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]
        self.loaded += [
            value or "" for name, value in attrs if name in ("src", "srcset") or (tag == "link" and name == "href")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loaded == []
    assert "<script" not in page
    assert checker.links
    assert all((REPORTS / link).is_file() for link in checker.links)
    assert page.count("<svg ") >= 2
    clips = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(set(clips)) == len(clips)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(clips)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert not re.search(r"\d\d:\d\d:\d\d|/tmp/|/home/", page)


def test_the_page_is_made_of_the_records_alone(tmp_path: Path, page: str) -> None:
    shutil.copytree(
        REPORTS, tmp_path / "reports", ignore=shutil.ignore_patterns("*.md", "*.svg", "*.csv", "manifest.json", FILE)
    )
    build_index(tmp_path / "reports", echo=lambda text: None)
    assert (tmp_path / "reports" / FILE).read_text(encoding="utf-8") == page


def test_a_row_whose_page_is_missing_is_not_run(tmp_path: Path) -> None:
    for name in ("lm", "lm_fig2a_codistillation"):
        shutil.copytree(REPORTS / name, tmp_path / "reports" / name)
    few = read_index(tmp_path / "reports")
    rows = {row.row.id: row for row in few.rows}
    assert {one.words for one in rows["I1"].answers} == {"not run"}
    assert rows["L6"].state == "not run"  # its regime is tested on another page
    assert {one.words for one in rows["L6"].answers} <= {"holds", "does not hold", "not resolved", "not tested"}
    assert "not run" in html(few)
    with pytest.raises(UserError, match="no reports of recipes"):
        read_index(tmp_path / "nothing")


def test_pages_that_share_runs_are_named(index: Index) -> None:
    [of_text] = [sentence for sentence in index.shared if "read the runs of lm:" in sentence]
    assert "lm_fig2a_codistillation" in of_text
    assert "no independent evidence" in of_text


def test_an_effect_has_its_claims_verdict(index: Index) -> None:
    """The boundary lies outside the interval exactly where the claim is decided by itself."""
    checked = 0
    for one in index.answers():
        verdict, effect = one.verdict, one.effect
        if verdict is None or effect is None or effect.interval is None or verdict.p is None or verdict.bounds:
            continue
        if effect.kind in ("churn", "steps", "ratios"):
            continue  # of a ratio the interval is another than that of the difference
        low, high = effect.interval
        outside = all(not low <= boundary <= high for boundary in effect.boundaries)
        assert outside == (verdict.p < 0.05), one.name
        checked += 1
    assert checked > 5


def test_a_claim_that_is_not_there_has_no_answer(index: Index) -> None:
    missing = answer(index.pages, ClaimPlace("lm_fig2a_codistillation", "", "nothing"))
    assert (missing.words, missing.numbers, missing.verdict) == ("not run", "–", None)
    judged = index.pages["lm_fig2a_codistillation"]
    assert effect_of(judged.verdicts[""][0], sides=[None, None]) is None


def test_the_table_goes_between_the_markers_alone() -> None:
    text = "a\n<!-- the paper's rows: made by odist index -->\nold\n<!-- end of the paper's rows -->\nb\n"
    once = with_table(text, "| new |\n")
    assert once == with_table(once, "| new |\n")
    assert "old" not in once
    assert once.startswith("a\n")
    assert once.endswith("\nb\n")
    with pytest.raises(UserError, match="no place for the table"):
        with_table("nothing", "| new |\n")


def test_every_claim_that_the_rows_name_is_a_recipes(index: Index) -> None:
    from odist.claims.recipe_file import load_recipe

    for row in read_paper_rows().rows:
        for text in row.claims:
            place = place_of(text)
            recipe = load_recipe(ROOT / "recipes" / f"{place.page}.yaml")
            assert place.claim in [claim.id for claim in recipe.claims], text
            assert place.variant in recipe.variants, text
    with pytest.raises(UserError, match="names no claim"):
        place_of("lm")


def test_churn_by_theory() -> None:
    """Against the stationary variance of coupled linear models dx = -(x + w (x - mean of the peers)) dt + noise."""
    for number, weight in ((2, 1.0), (2, 3.0), (4, 1.0), (8, 0.5)):
        peers = (np.ones((number, number)) - np.eye(number)) / (number - 1)
        drift = np.eye(number) * (1 + weight) - weight * peers
        variance = solve_continuous_lyapunov(drift, 2 * np.eye(number))[0, 0]
        assert churn_of_copy(number, weight=weight) == pytest.approx(math.sqrt(variance))
    assert churn_of_copy(2, weight=1) == pytest.approx(math.sqrt(2 / 3))
    assert churn_of_copy(4, weight=1) == pytest.approx(math.sqrt(4 / 7))
    assert churn_of_copy(3, weight=0) == pytest.approx(1.0)
    assert churn_of_copy(5, weight=1e9) == pytest.approx(churn_of_ensemble(5))
