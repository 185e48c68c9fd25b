"""A part of the campaign that `make fuzz` runs whole: every kind of hostile input a few times, from fixed seeds."""

from __future__ import annotations

import pytest
from fuzz import campaign

COUNTS = {"snapshots": 500, "checkpoints": 44, "rows": 46, "text": 42, "images": 46}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", campaign.TARGETS)
def test_nothing_hostile_is_used_raises_hangs_or_gets_out(target: str) -> None:
    results = campaign.run(campaign.cases_of(target, count=COUNTS[target]))
    print(campaign.table(results))
    assert len(results) == COUNTS[target]
    failed = campaign.failures(results)
    assert not failed, "\n\n".join(f"{result.case}: {result.outcome}\n{result.detail}" for result in failed[:10])


@pytest.mark.parametrize("target", campaign.TARGETS)
def test_a_case_is_the_same_under_its_name(target: str) -> None:
    first, *_, last = campaign.cases_of(target, count=100, seed=7)
    assert campaign.Case.named(str(first)) == first
    assert (first.seed, last.seed) == (7, 106)
    assert len({case.kind for case in campaign.cases_of(target, count=1000)}) >= 20


def test_kinds_of_damage_to_snapshots_are_many() -> None:
    kinds = {case.kind for case in campaign.cases_of("snapshots", count=500)}
    assert len({kind.rsplit(", ", 1)[0] for kind in kinds}) >= 80
    assert {kind.rsplit(", ", 1)[1] for kind in kinds} == {"freshest", "lockstep"}


def test_what_may_not_happen_is_noticed() -> None:
    cases = campaign.cases_of("pretend", count=9)
    results = campaign.run([*cases, campaign.Case("pretend", "fine", 9)], seconds=10.0)
    outcomes = {result.case.kind: result.outcome for result in results}
    assert len(results) == 10
    expected = {kind: kind.split(",")[0].split(":")[0].removesuffix(" in a thread") for kind in outcomes}
    assert outcomes == {**expected, "fine": "harmless"}
    assert {result.case.kind for result in campaign.failures(results)} == set(outcomes) - {"fine"}
    assert "pretend: hangs in a thread" in campaign.table(results)
