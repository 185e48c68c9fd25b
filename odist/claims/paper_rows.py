"""The rows of the paper and the claims that answer each, read from `paper/rows.yaml` beside the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from odist.claims.recipe_file import paper_file
from odist.errors import UserError

FILE = "rows.yaml"
STATES = ("reached", "not reached", "not resolved", "not run")


@dataclass(frozen=True)
class Regime:
    """A test of whether the paper's conditions were reached: by a claim, or by a state that is known."""

    text: str
    claim: str | None = None
    state: str = "not run"


@dataclass(frozen=True)
class PaperRow:
    """One system of the paper. claims: PAGE/CLAIM or PAGE:VARIANT/CLAIM; command: of a row without claims"""

    id: str
    task: str
    system: str
    paper: str
    claims: tuple[str, ...] = ()
    regime: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class PaperRows:
    rows: tuple[PaperRow, ...]
    regimes: dict[str, Regime]
    regime_map: str | None
    finding: str = ""  # what the page says first


@dataclass(frozen=True)
class ClaimPlace:
    """Where a claim stands."""

    page: str
    variant: str
    claim: str


def place_of(text: str) -> ClaimPlace:
    """PAGE/CLAIM or PAGE:VARIANT/CLAIM."""
    where, separator, claim = text.partition("/")
    if not separator or not claim:
        raise UserError(f"{FILE}: {text!r} names no claim. Expected PAGE/CLAIM or PAGE:VARIANT/CLAIM.")
    page, _, variant = where.partition(":")
    return ClaimPlace(page, variant, claim)


def read_paper_rows() -> PaperRows:
    """UserError naming the row and the key that is wrong."""
    import yaml

    content = yaml.safe_load(paper_file(FILE))
    regimes = {key: _made(Regime, value, f"regime {key}") for key, value in content["regimes"].items()}
    rows = tuple(
        _made(PaperRow, {**row, "claims": tuple(row.get("claims", ()))}, f"row {row.get('id')}")
        for row in content["rows"]
    )
    for row in rows:
        if row.regime is not None and row.regime not in regimes:
            raise UserError(f"{FILE}, row {row.id}: no regime {row.regime!r}. Choose among: {', '.join(regimes)}.")
        for claim in row.claims:
            place_of(claim)
    for key, regime in regimes.items():
        if regime.state not in STATES:
            raise UserError(f"{FILE}, regime {key}: no state {regime.state!r}. Choose among: {', '.join(STATES)}.")
    return PaperRows(rows, regimes, content.get("regime_map"), " ".join(str(content.get("finding", "")).split()))


def _made(kind: type[Any], content: dict[str, Any], where: str) -> Any:
    try:
        return kind(**content)
    except TypeError as error:
        raise UserError(f"{FILE}, {where}: {error}.") from error
