"""The figures of the page of all reports: every claim with its interval, churn against loss and theory, the map of regimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from odist.claims import style
from odist.claims.claim import FAILS, HOLDS
from odist.claims.effects import RATIOS
from odist.claims.figure import compared_with, points_of
from odist.claims.frontier import draw_frontier, frontier_lines
from odist.claims.index import Answer, Index
from odist.claims.judged import Judged
from odist.claims.plot import draw_tradeoff
from odist.claims.quantities import CHURN, name_of
from odist.claims.recipe import System
from odist.claims.record import Record
from odist.claims.style import Look
from odist.claims.summary import SystemSummary, summarise
from odist.claims.theory import churn_of_copy, churn_of_ensemble
from odist.config.identity import flatten
from odist.measure.intervals import Interval, jackknife

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADINGS = {
    "steps": "Steps to a target",
    "churn": "Churn",
    "accuracy": "Accuracies",
    "ratios": "One ratio against another",
}
WIDTH, ROW, PANEL = 9.0, 0.19, 0.8  # inches
GREY = "#555555"
FREE = ("algorithm.", "exchange.", "run.", "launch.", "num_groups", "seed")  # keys in which theory lets systems differ


def looks_of(judged: Judged) -> dict[str, Look]:
    """How each system of a page is drawn, as in the page's own figure."""
    systems = judged.recipe.systems
    shades = {name: system.shade for name, system in systems.items() if system.shade is not None}
    return style.looks(judged.recipe.algorithms, shades=shades)


def forest(index: Index) -> str | None:
    """Every claim that compared something, with its 95 % interval; None without any. One panel a kind of effect."""
    by_kind: dict[str, list[Answer]] = {}
    for one in index.answers():
        if one.effect is not None:
            by_kind.setdefault(one.effect.kind, []).append(one)
    if not by_kind:
        return None
    heights = [PANEL + ROW * len(answers) for answers in by_kind.values()]
    with style.drawing(WIDTH, sum(heights)) as figure:
        axes = figure.subplots(len(by_kind), 1, squeeze=False, height_ratios=heights).ravel()
        for axis, (kind, answers) in zip(axes, by_kind.items(), strict=True):
            _draw_claims(axis, kind, answers, index)
        return style.svg_text(figure, name="claims")


def _draw_claims(axes: Axes, kind: str, answers: Sequence[Answer], index: Index) -> None:
    name = name_of(kind)
    axes.set_title(HEADINGS.get(kind, f"{name[0].upper()}{name[1:]}"), loc="left")
    for place, one in enumerate(answers):
        effect, verdict = one.effect, one.verdict
        if effect is None or verdict is None:
            continue
        look = looks_of(index.pages[one.place.page])[verdict.claim.left]
        sure = verdict.verdict in (HOLDS, FAILS)
        if effect.interval is not None:
            low = max(effect.interval[0], 1e-3) if kind in RATIOS else effect.interval[0]
            axes.plot([low, effect.interval[1]], [place, place], color=look.colour, linewidth=1.6 if sure else 0.9)
        axes.plot(
            [effect.value],
            [place],
            marker="D" if verdict.claim.primary else "o",
            markersize=5.5,
            color=look.colour,
            markerfacecolor=look.colour if sure else "#FFFFFF",
        )
        for boundary in effect.boundaries:
            axes.plot([boundary] * 2, [place - 0.4, place + 0.4], color=GREY, linewidth=1.2)
    if kind in RATIOS:
        from matplotlib.ticker import FixedLocator, NullLocator

        axes.set_xscale("log")
        lows = [effect.value for one in answers if (effect := one.effect) is not None]
        ticks = [tick for tick in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4) if min(lows) / 2 <= tick <= max(lows) * 2]
        axes.set_xlim(min(*lows, 1) / 1.6, max(*lows, 1) * 1.6)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(len(answers) - 0.4, -0.6)
    names = [f"{one.name}: {'' if one.verdict is None else one.verdict.verdict}" for one in answers]
    axes.set_yticks(range(len(answers)), names, fontsize=7)
    axes.grid(axis="y", visible=False)
    unit = answers[0].effect.unit if answers[0].effect is not None else ""
    style.finish(
        axes, x="left / right (logarithmic)" if kind in RATIOS else f"left - right ({unit.strip() or name})", y=""
    )


@dataclass(frozen=True)
class Predicted:
    """Churn of a system relative to a single model: as the theory has it, and as it was measured."""

    look: Look
    theory: float
    measured: float
    interval: Interval | None


def predictions(index: Index) -> list[Predicted]:
    """Ensembles and codistilled groups that differ from their page's single model in nothing but that."""
    found = []
    for judged in index.pages.values():
        looks = looks_of(judged)
        for (variant, system), own in judged.retrains.items():
            base = judged.retrains.get((variant, judged.recipe.reference))
            if base is None or base is own or not judged.recipe.measures_churn:
                continue
            seeds = tuple(seed for seed in base.seeds if seed in own.seeds)
            if len(seeds) < 2 or not own.has(CHURN, seeds) or not base.has(CHURN, seeds):
                continue
            theory = _theory(judged.recipe.systems[system], own.by_seed[seeds[0]], base.by_seed[seeds[0]])
            if theory is None:
                continue
            above, below = own.statistic(CHURN, seeds), base.statistic(CHURN, seeds)
            value, interval = jackknife(lambda places, a=above, b=below: a(places) / b(places), len(seeds))  # type: ignore[misc]
            found.append(Predicted(looks[system], theory, value, interval))
    return found


def _theory(system: System, record: Record, base: Record) -> float | None:
    """What the theory has for a system beside the single model; None for one that differs from it in more than the algorithm."""
    config, single = (dict(flatten(one.config)) for one in (record, base))
    free = (*FREE, "train.average") if system.weights == "last" else FREE
    if any(single.get(key) != value for key, value in config.items() if not key.startswith(free)):
        return None
    groups, algorithm = config.get("num_groups"), config.get("algorithm.name")
    if not isinstance(groups, int) or groups < 2 or config.get("algorithm.strategy") not in (None, "allreduce"):
        return None
    if record.results.get("predictor") == "mean":
        return churn_of_ensemble(groups)
    distill, label = config.get("algorithm.distill_weight"), config.get("algorithm.label_weight")
    if (
        algorithm != "codistill"
        or not isinstance(distill, float | int)
        or not isinstance(label, float | int)
        or not label
    ):
        return None
    return churn_of_copy(groups, weight=distill / label)


def churn_figure(index: Index) -> str | None:
    """Loss against churn of every page that measures churn, and measured churn against the theory; None without any."""
    panels: list[tuple[str, Judged, list[SystemSummary]]] = []
    for name, judged in index.pages.items():
        if not judged.recipe.measures_churn:
            continue
        summaries = summarise(judged.retrains, judged.recipe)
        for variant, layer in judged.recipe.variants.items():
            own = [one for one in summaries if one.variant == variant and one.churn]
            if own:
                panels.append((f"{name}{': ' if variant else ''}{layer.label or variant}", judged, own))
    theory = predictions(index)
    if not panels:
        return None
    number = len(panels) + bool(theory)
    rows = -(-number // 2)
    with style.panels(min(2, number), rows=rows) as (figure, axes):
        for axis, (title, judged, own) in zip(axes, panels, strict=False):
            looks, metric = looks_of(judged), judged.recipe.metrics[0]
            points = points_of(judged.recipe, own, looks)
            draw_tradeoff(axis, points, metric=metric)
            variant = own[0].variant
            draw_frontier(axis, frontier_lines(judged.recipe, judged.frontier, variant=variant), looks)
            released = "" if judged.recipe.churn_against is None else f" {compared_with(judged.recipe)}"
            axis.set_xlabel(f"churn{released} (lower: steadier)")
            for point in points:
                axis.annotate(
                    point.label, (point.churn, point.loss), xytext=(5, 4), textcoords="offset points", fontsize=7
                )
            axis.set_title(title if len(title) < 60 else f"{title[:57]}...", loc="left")
        for axis in axes[len(panels) + bool(theory) :]:
            axis.set_axis_off()
        if theory:
            _draw_theory(axes[len(panels)], theory)
        return style.svg_text(figure, name="churn")


def _draw_theory(axes: Axes, points: Sequence[Predicted]) -> None:
    axes.set_title("Churn / single model: theory and measurement", loc="left")
    ends = [min(one.theory for one in points) - 0.06, max(one.theory for one in points) + 0.06]
    axes.plot(ends, ends, color=GREY, linewidth=0.9, linestyle=":")
    for one in points:
        errors = None if one.interval is None else [[one.measured - one.interval[0]], [one.interval[1] - one.measured]]
        axes.errorbar(
            one.theory,
            one.measured,
            yerr=errors,
            fmt=one.look.marker,
            color=one.look.colour,
            capsize=3,
            markerfacecolor=one.look.face,
        )
    style.finish(axes, x="theory, without a fit", y="measured")


def regime_map(index: Index) -> str | None:
    """What every system of the map gains on its single model, a row for each cell; None where it was not run."""
    judged = index.pages.get(index.paper.regime_map or "")
    if judged is None:
        return None
    recipe, looks = judged.recipe, looks_of(judged)
    metric, cells = recipe.metrics[0], []
    for variant, layer in recipe.variants.items():
        means = {
            system: float(np.mean(own.metric(metric, own.seeds)))
            for system in recipe.systems
            if (own := judged.retrains.get((variant, system))) is not None and own.has(metric, own.seeds)
        }
        if recipe.reference in means and len(means) > 1:
            single = means.pop(recipe.reference)
            cells.append((layer.label or variant, {system: single - value for system, value in means.items()}))
    if not cells:
        return None
    with style.drawing(WIDTH, 1.4 + 0.42 * len(cells)) as figure:
        axes = figure.subplots()
        axes.axvline(0.0, color=GREY, linewidth=0.9, linestyle=":")
        for place, (_, gains) in enumerate(cells):
            for system, gain in gains.items():
                look = looks[system]
                axes.plot([gain], [place], look.marker, color=look.colour, markerfacecolor=look.face)
        axes.set_yticks(range(len(cells)), [label for label, _ in cells], fontsize=8)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        style.finish(axes, x=f"gain on one model ({name_of(metric)}, nats; right: better)", y="")
        drawn = [system for system in recipe.systems if any(system in gains for _, gains in cells)]
        style.legend(figure, {recipe.systems[system].label: looks[system] for system in drawn})
        return style.svg_text(figure, name="regimes")
