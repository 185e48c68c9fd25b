"""Recipes: which systems are trained with which seeds, and which claims of the paper they decide (odist.claims.claim).

A recipe is a YAML file; odist.claims.recipe_file reads it into these classes, whose fields are its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from odist.claims.claim import Claim, Decision, Reference, Targets
from odist.claims.quantities import AGAINST, CHURN
from odist.errors import UserError


@dataclass(frozen=True)
class System:
    """One row of a table: a name, what it is called in the paper, overrides of `odist train`, the paper's numbers.

    paper_curve: name of its curve in the paper's figure, if it has one
    teachers: system whose finished run of the next seed teaches this one (two-phase distillation): one of the same
        seed would share its start and the order of its examples
    starts_from: system whose finished run of the next seed has the first weights of this one
    tuned_with: system whose tuned setting this one uses
    runs_of: system whose runs this one is another prediction of, so that nothing is trained for it: by the last
        `weights` where an average of them predicts, and by the `mean` of all groups or each of the `copies` by itself
        (`predictor`)
    paper_label: what the paper ran in its place; shade: which of its algorithm's shades it has in figures, by default
        the next
    """

    name: str
    label: str
    overrides: tuple[str, ...] = ()
    paper: dict[str, Any] = field(default_factory=dict)  # metric: value, or [value, plus or minus]
    paper_curve: str | None = None
    teachers: str | None = None
    tuned_with: str | None = None
    paper_label: str | None = None
    shade: int | None = None
    runs_of: str | None = None
    weights: str | None = None  # `last`
    predictor: str | None = None  # `mean` or `copies`
    starts_from: str | None = None

    @property
    def built_on(self) -> tuple[str, ...]:
        """Systems whose finished runs have to be there first."""
        return tuple(dict.fromkeys(name for name in (self.teachers, self.starts_from) if name is not None))

    @property
    def full_label(self) -> str:
        """For tables and legends: what was run here, and what the paper ran."""
        return self.label if self.paper_label is None else f"{self.label} (paper: {self.paper_label})"

    @property
    def algorithm(self) -> str:
        """Name of the algorithm that its overrides choose, `sync` where they choose none."""
        return next(
            (line.split("=", 1)[1] for line in reversed(self.overrides) if line.startswith("algorithm=")), "sync"
        )


def _check_grid(grid: Sequence[float]) -> None:
    doubling = all(low > 0 and abs(high / low - 2) <= 1e-9 for low, high in pairwise(grid))
    if len(grid) < 3 or not doubling:
        raise UserError(f"the grid must be three or more numbers, each twice the one before, got {[*grid]}.")


@dataclass(frozen=True)
class Tuning:
    """How one setting of every system is chosen, on rows and seeds that are not reported.

    key: the override that is tuned; grid: its values, each twice the one before
    extensions: how many values may be added at either end while the best one of some system lies there
    overrides: of every trial, such as data.holdout=tuning
    """

    key: str
    grid: tuple[float, ...]
    seeds: tuple[int, ...]
    metric: str
    overrides: tuple[str, ...]
    extensions: int = 3

    def __post_init__(self) -> None:
        _check_grid(self.grid)
        _check_seeds(self.seeds)


@dataclass(frozen=True)
class SeedsUntil:
    """Seeds that are added, one at a time, until an interval is narrow enough; its width says nothing of the verdict.

    claim: whose interval; width: from its lower to its upper end, of the difference that the claim is about
    at_most: seeds of a variant, the recipe's own included
    """

    claim: str
    width: float
    at_most: int

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise UserError(f"seeds_until: width is above 0, got {self.width:g}.")


@dataclass(frozen=True)
class Frontier:
    """Runs beside those of the tables: every system at several values of one setting, for churn against loss.

    key, values: the override and what it is set to; systems: those that are run so, empty for all that are trained
    seeds: of these runs, None for the recipe's own; scales: those at which they are run
    """

    key: str
    values: tuple[float, ...]
    systems: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    scales: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.values)) < max(2, len(self.values)):
            raise UserError(f"a frontier has two or more different values, got {[*self.values]}.")
        _check_seeds(self.seeds or ())


@dataclass(frozen=True)
class Layer:
    """What a scale or a variant adds: overrides for all systems and for some, seeds, variables.

    without: systems that a variant leaves out; scales: those that a variant is run at, None for all
    """

    label: str = ""
    overrides: tuple[str, ...] = ()
    systems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None  # a variable that the caller must give
    without: tuple[str, ...] = ()
    scales: tuple[str, ...] | None = None
    references: dict[str, Reference] = field(default_factory=dict)
    tuning_seeds: tuple[int, ...] | None = None  # of the trials on this variant; None: as for all
    tuning_grid: tuple[float, ...] | None = None  # of the trials at this scale; None: as for all

    def __post_init__(self) -> None:
        _check_seeds(self.seeds or ())
        _check_seeds(self.tuning_seeds or ())
        if self.tuning_grid is not None:
            _check_grid(self.tuning_grid)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `text` is the file itself.

    churn_against: the system that the others are to replace, such as a released model: every run is compared with its run
        of the next seed, the one that would teach it (`odist.claims.churn_of_models`)
    """

    name: str
    text: str
    title: str
    systems: dict[str, System]
    reference: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    scales: dict[str, Layer]
    description: str = ""
    overrides: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    scale: str = ""  # its own; by default the first of `scales`
    variants: dict[str, Layer] = field(default_factory=lambda: {"": Layer()})
    tuning: Tuning | None = None
    frontier: Frontier | None = None
    seeds_until: SeedsUntil | None = None
    decision: Decision | None = None
    targets: Targets | None = None
    paper_figure: str | None = None  # CSV in recipes/paper: system, step, the targets' metric with its unit
    runs_of: str | None = None  # the recipe whose runs and tuning this one reads
    churn_against: str | None = None
    judged_later: bool = False  # of the copy beside a report: its claims or targets were changed after its runs

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        if not self.scales or not self.variants:
            raise UserError(f"{'variants' if self.scales else 'scales'} is empty: a recipe has one at least.")

    @property
    def home(self) -> str:
        """Name of the recipe that owns the runs and the tuning."""
        return self.runs_of or self.name

    @property
    def churn_measure(self) -> str:
        """The measure of churn that figures and ratios are about."""
        return CHURN if self.churn_against is None else f"{AGAINST}{CHURN}"

    @property
    def measures_churn(self) -> bool:
        """Whether a table or a claim is about the churn between retrains."""
        from odist.measure.churn import PAIR_METRICS

        return any(name in PAIR_METRICS for name in (*self.metrics, *(claim.metric for claim in self.claims)))

    def at(self, scale: str) -> Recipe:
        """The recipe without what belongs to other scales: two with equal ones do the same at this one."""
        variants = {name: replace(self.variants[name], scales=None) for name in self.variants_at(scale)}
        return replace(self, scales={scale: self.layer(scale)}, variants=variants)

    @property
    def without_judgement(self) -> Recipe:
        """The recipe without claims, targets and what else only judges: two with equal ones train and tune the same."""
        systems = {
            name: replace(system, paper={}, paper_curve=None) for name, system in self.without_wording.systems.items()
        }
        return replace(
            self.without_wording,
            systems=systems,
            claims=(),
            decision=None,
            targets=None,
            metrics=(),
            paper_figure=None,
            judged_later=False,
        )

    @property
    def without_wording(self) -> Recipe:
        """The recipe without what only readers see: two with equal ones train, tune and judge the same."""

        def unlabelled(layers: Mapping[str, Layer]) -> dict[str, Layer]:
            return {
                key: replace(layer, label="", references={k: replace(r, label="") for k, r in layer.references.items()})
                for key, layer in layers.items()
            }

        systems = {
            name: replace(system, label="", paper_label=None, shade=None) for name, system in self.systems.items()
        }
        claims = tuple(replace(claim, text="") for claim in self.claims)
        decision = self.decision and Decision(self.decision.claim, "", "", "")
        return replace(
            self,
            text="",
            title="",
            description="",
            systems=systems,
            claims=claims,
            decision=decision,
            scales=unlabelled(self.scales),
            variants=unlabelled(self.variants),
        )

    @property
    def algorithms(self) -> dict[str, str]:
        """System -> name of its algorithm, by which it is drawn: a member of an ensemble by itself is a single model."""
        names = {}
        for name, system in self.systems.items():
            owner = self.systems.get(system.runs_of or "", system)
            single = owner.algorithm == "ensemble" and system.predictor == "copies"
            names[name] = "sync" if single else owner.algorithm
        return names

    def systems_in(self, variant: str) -> list[str]:
        """Names of the systems that a variant trains."""
        return [name for name in self.systems if name not in self.variants[variant].without]

    def seeds_at(self, scale: str, variant: str = "") -> tuple[int, ...]:
        """The seeds of a scale: its own, else those of the variant, else the recipe's."""
        of_variant = self.variants[variant].seeds if variant in self.variants else None
        return self.layer(scale).seeds or of_variant or self.seeds

    def layer(self, scale: str) -> Layer:
        """The scale's additions; UserError for a scale that the recipe does not list."""
        if scale not in self.scales:
            raise UserError(f"recipe {self.name} has no scale {scale!r}. Choose among: {', '.join(self.scales)}.")
        return self.scales[scale]

    def variants_at(self, scale: str) -> list[str]:
        """Names of the variants that are run at a scale; one empty name for a recipe without variants."""
        return [name for name, layer in self.variants.items() if layer.scales is None or scale in layer.scales]


def _check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be different whole numbers, got {[*seeds]}.")
