"""What a recipe wants to know of its runs: claims, the decision that hangs on one, references, targets."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

from odist.config.suggest import choose
from odist.errors import UserError

HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not hold", "not resolved", "not tested"  # verdicts on a claim
RELATIONS = ("<", ">", "within")
KINDS_OF_REFERENCE = ("logistic",)


def _in_statement(default: Any = MISSING) -> Any:
    """A field of a claim that the file has below `statement`."""
    return field(default=default, metadata={"within": "statement"})


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and a comparison of two systems that decides it.

    left < factor * right - margin, left > factor * right + margin, or |left - factor * right| <= margin (`within`);
    with `versus`, two ratios are compared instead: left / right with versus[0] / versus[1]
    along: system -> its place on an axis, from left to right: left and right are then the ends of the straight line through
        the means of all these systems, so that the claim is about their trend
    requires: id of the claim that has to hold for this one to be tested
    primary: whether it is one of the one or two claims that the recipe was made for, fixed before its runs
    """

    id: str
    text: str
    metric: str = _in_statement()
    left: str = _in_statement()
    right: str = _in_statement()
    relation: str = _in_statement()
    factor: float = _in_statement(1.0)
    margin: float = _in_statement(0.0)
    versus: tuple[str, str] | None = _in_statement(None)
    along: dict[str, float] = field(default_factory=dict, metadata={"within": "statement"})
    requires: str | None = None
    primary: bool = False

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise UserError(f"relation: {self.relation!r} is unknown. {choose(self.relation, RELATIONS)}")
        if self.relation == "within" and not self.margin > 0:
            raise UserError("the relation `within` needs a margin above 0.")
        if self.margin < 0:
            raise UserError(f"a margin is 0 or more, got {self.margin:g}.")
        if self.along:
            self._check_along()

    def _check_along(self) -> None:
        places = [*self.along.values()]
        if (
            len(places) < 3
            or places != sorted(set(places))
            or [*self.along][:: len(places) - 1] != [self.left, self.right]
        ):
            raise UserError(
                f"along: {self.along} is no trend: name three or more systems with rising numbers, the first {self.left} (left), "
                f"the last {self.right} (right)."
            )
        if self.versus is not None or self.factor != 1 or self.metric.startswith("steps_to_"):
            raise UserError("along: a trend has no `versus` and no `factor`, and is not of steps to a target.")

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that it compares, left and right first."""
        between = [name for name in self.along if name not in (self.left, self.right)]
        return (self.left, self.right, *(self.versus or ()), *between)


@dataclass(frozen=True)
class Reference:
    """Another method, fitted on the rows of one system and held against it.

    kind: which method, by default its name; only `logistic` (odist.claims.logistic)
    margin: every single run of `system` has to stay within it of the reference
    """

    name: str
    label: str
    system: str
    margin: float
    metric: str = "log_loss"
    kind: str | None = None

    def __post_init__(self) -> None:
        if (self.kind or self.name) not in KINDS_OF_REFERENCE:
            raise UserError(f"kind: {self.kind or self.name!r} is unknown. Choices: {', '.join(KINDS_OF_REFERENCE)}.")


@dataclass(frozen=True)
class Decision:
    """The sentence that a report opens with, by the verdict on one claim.

    untested: needed where the claim requires another
    """

    claim: str
    holds: str = field(metadata={"yaml": HOLDS})
    fails: str = field(metadata={"yaml": FAILS})
    open: str = field(metadata={"yaml": OPEN})
    untested: str | None = field(default=None, metadata={"yaml": UNTESTED})

    @property
    def text(self) -> dict[str, str]:
        """Verdict -> sentence, in one line."""
        sentences = {HOLDS: self.holds, FAILS: self.fails, OPEN: self.open, UNTESTED: self.untested}
        return {verdict: " ".join(text.split()) for verdict, text in sentences.items() if text is not None}


@dataclass(frozen=True)
class Targets:
    """The baseline whose loss or accuracy the other systems are timed against (odist.claims.targets)."""

    system: str
    metric: str
