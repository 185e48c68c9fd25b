"""One variant's section of a report page: tables, claims, references, and what to know before believing them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from odist.claims.claim import FAILS, UNTESTED
from odist.claims.quantities import AGAINST, name_of
from odist.claims.recipe import Recipe
from odist.claims.record import Record
from odist.claims.references import FittedReference, reference_parts, reference_row, values_of
from odist.claims.retrains import Retrains
from odist.claims.summary import COSTS, SystemSummary
from odist.claims.table import ABSENT, count, estimate, markdown_table, probability
from odist.claims.targets import target_parts
from odist.claims.tuning import TuningFile, tuning_notes
from odist.claims.verdicts import Verdict
from odist.measure.churn import PAIR_METRICS

FEWEST_RETRAINS = 5
COST_NAMES = {
    "examples_per_model": "examples per model",
    "total_examples": "examples in all",
    "distinct_examples": "distinct examples",
    "flops": "FLOPs",
    "bytes_sent": "bytes that a worker sends",
    "seconds": "seconds",
}


def variant_parts(
    recipe: Recipe,
    *,
    variant: str,
    summaries: Sequence[SystemSummary],
    retrains: Mapping[str, Retrains],
    verdicts: Sequence[Verdict],
    records: Sequence[Record],
    references: Mapping[str, FittedReference | None],
    tuning: TuningFile | None,
) -> list[str]:
    """Paragraphs and tables of one variant.

    summaries, retrains, verdicts, records: of this variant, at least one record
    references: name -> record, None where it was not fitted; tuning: content of tuning.json
    """
    scale = records[0].scale
    notes = tuning_notes(recipe, tuning, scale=scale, variant=variant, records=records)
    parts = [f"{note}\n" if note.startswith("**") else f"Note: {note}\n" for note in notes]
    parts += _decision_parts(recipe, verdicts)
    parts += _tables(recipe, variant=variant, summaries=summaries, references=references)
    parts += target_parts(recipe, retrains)
    if verdicts:
        parts.append("Claims:\n")
        ordered = sorted(verdicts, key=lambda verdict: not verdict.claim.primary)  # stable: as in the recipe
        parts += [_verdict_line(recipe, verdict) for verdict in ordered]
        parts.append("")
    for name, reference in recipe.variants[variant].references.items():
        metric = name_of(reference.metric)
        parts += reference_parts(
            recipe, reference, references[name], values=values_of(records, reference), metric_name=metric
        )
    planned = recipe.seeds_at(scale, variant) if scale in recipe.scales else recipe.seeds
    missing = [
        f"{name}-s{seed}"
        for name in recipe.systems_in(variant)
        for seed in planned
        if not any(s.system == name and seed in s.seeds for s in summaries)
    ]
    if missing:
        parts.append(f"Missing runs: {', '.join(missing)}.\n")
    return parts + [f"Note: {note}\n" for note in (*_notes(records), *_few(recipe, summaries, scale=scale))]


def _few(recipe: Recipe, summaries: Sequence[SystemSummary], *, scale: str) -> list[str]:
    """What makes the intervals themselves uncertain: few retrains, churn of one copy of several."""
    notes = []
    least = min(len(summary.seeds) for summary in summaries)
    if least < FEWEST_RETRAINS and scale != "smoke":
        notes.append(f"of {least} retrains an interval is itself uncertain; {FEWEST_RETRAINS} or more are asked for.")
    first = [recipe.systems[summary.system].label for summary in summaries if not summary.all_copies]
    if first and recipe.measures_churn:
        notes.append(f"churn is between the first copies alone, as the records hold no other: {'; '.join(first)}.")
    return notes


def _decision_parts(recipe: Recipe, verdicts: Sequence[Verdict]) -> list[str]:
    """The sentence that the recipe gives for the verdict on its deciding claim, with the numbers behind it."""
    decision = recipe.decision
    decided = [verdict for verdict in verdicts if decision is not None and verdict.claim.id == decision.claim]
    if decision is None or not decided:
        return []
    return [f"**Verdict.** {decision.text[decided[0].verdict]} ({_numbers(recipe, decided[0])}.)\n"]


def _tables(
    recipe: Recipe,
    *,
    variant: str,
    summaries: Sequence[SystemSummary],
    references: Mapping[str, FittedReference | None],
) -> list[str]:
    metrics = [name for name in recipe.metrics if any(name in s.metrics or name in s.churn for s in summaries)]
    columns = {"label": "system", "seeds": "retrains"}
    columns |= {name: _name(recipe, name) for name in metrics}
    if any(name.removeprefix(AGAINST) in PAIR_METRICS for name in recipe.metrics):
        columns["ratio"] = f"{name_of(recipe.churn_measure)} / {recipe.systems[recipe.reference].label}"
    rows = []
    for summary in summaries:
        row = {"label": recipe.systems[summary.system].full_label, "seeds": _observations(summary)}
        row |= {name: estimate(*summary.estimate_of(name)) for name in metrics}
        row["ratio"] = "1" if summary.system == recipe.reference else estimate(*summary.ratio)
        rows.append(row)
    for name, reference in recipe.variants[variant].references.items():
        record = references[name]
        if record is not None:
            rows.append(reference_row(recipe, reference, record))
    parts = [markdown_table(columns, rows)]
    if any(recipe.systems[summary.system].paper for summary in summaries):
        parts.append("Beside the paper's:\n")
        parts.append(_paper_table(recipe, summaries))
    parts.append("Cost of one run (mean over retrains):\n")
    known = [name for name in COSTS if any(name in s.costs for s in summaries)]
    costs = [
        {"label": recipe.systems[s.system].full_label} | {name: count(s.costs.get(name)) for name in known}
        for s in summaries
    ]
    parts.append(markdown_table({"label": "system"} | {name: COST_NAMES[name] for name in known}, costs))
    return parts


def _observations(summary: SystemSummary) -> str:
    """The number of retrains, and of the models in them where a retrain has several."""
    runs = len(summary.seeds)
    return str(runs) if summary.copies == runs else f"{runs} ({summary.copies} models)"


def _paper_table(recipe: Recipe, summaries: Sequence[SystemSummary]) -> str:
    names = [name for name in (*recipe.metrics, *PAIR_METRICS) if any(name in s.paper for s in recipe.systems.values())]
    columns, rows = {"label": "system"}, []
    for name in dict.fromkeys(names):
        columns |= {name: f"{_name(recipe, name)}, here", f"{name}_paper": f"{_name(recipe, name)}, paper"}
    for summary in summaries:
        system, ours = recipe.systems[summary.system], summary.metrics | summary.churn
        row = {"label": system.full_label}
        for name in dict.fromkeys(names):
            row[name] = estimate(*ours.get(name, (None, None)))
            row[f"{name}_paper"] = _paper_text(system.paper.get(name))
        rows.append(row)
    return markdown_table(columns, rows)


def _paper_text(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value[0]} ± {value[1]}" if isinstance(value, list) else str(value)


def _name(recipe: Recipe, metric: str) -> str:
    return name_of(metric, targets=recipe.targets.metric if recipe.targets else None)


def _verdict_line(recipe: Recipe, verdict: Verdict) -> str:
    primary = " (primary)" if verdict.claim.primary else ""
    return f"- **{verdict.verdict}**{primary}: {verdict.claim.text} ({_numbers(recipe, verdict)}.)"


def _why_untested(verdict: Verdict) -> str:
    """Which claim had to hold first, and what came of it; nothing for a claim that was tested."""
    if verdict.verdict != UNTESTED:
        return ""
    if verdict.widest is not None:
        return f"Its margin tells nothing apart: no two other systems differ by more than {estimate(verdict.widest)}. "
    outcome = {None: "is not part of this variant", FAILS: FAILS}.get(verdict.required, f"is {verdict.required}")
    return f"It requires the claim `{verdict.claim.requires}`, which {outcome}. "


def _numbers(recipe: Recipe, verdict: Verdict) -> str:
    """Why it was not tested, if so; what was compared, and the numbers that decide it."""
    claim = verdict.claim
    left, right, *versus = (recipe.systems[name].label for name in (claim.left, claim.right, *(claim.versus or ())))
    factor = "" if claim.factor == 1 else f"{claim.factor:g} × "
    relation = f"within {claim.margin:g} of" if claim.relation == "within" else claim.relation
    name = _name(recipe, claim.metric)
    first, second = left, right
    if versus:
        first, second = f"{left} / {right}", f"{versus[0]} / {versus[1]}"
    if verdict.ratios is not None:
        first, second = (
            f"{text} = {estimate(*ratio)}" for text, ratio in zip((first, second), verdict.ratios, strict=True)
        )
    if verdict.difference is None:
        why = "a run or the metric is missing"
    else:
        why = (
            f"difference {estimate(verdict.difference, verdict.interval, sign=True)}, {verdict.num_seeds} common seeds"
            f"{_p_values(verdict)}{_censored(recipe, verdict)}{_near_empty(recipe, verdict)}"
        )
    if claim.along:
        first, second = f"{left}, first", f"{right}, last of {len(claim.along)} on a straight line,"
    by = f" by more than {claim.margin:g}" if claim.margin and claim.relation != "within" else ""
    return f"{_why_untested(verdict)}{name} of {first} {relation} {factor}{second}{by}: {why}"


def _p_values(verdict: Verdict) -> str:
    if verdict.p is None:
        return ""
    own = f", p = {probability(verdict.p)}"
    return own if verdict.adjusted in (None, verdict.p) else f"{own}, adjusted {probability(verdict.adjusted or 0.0)}"


def _censored(recipe: Recipe, verdict: Verdict) -> str:
    """Which models never reached the target, and what that leaves of the verdict."""
    if not verdict.bounds:
        return ""
    sides = " and ".join(
        f"{bound.never} of {bound.models} models of {recipe.systems[bound.system].label}" for bound in verdict.bounds
    )
    ending = "which leaves the claim open" if verdict.censored else "the bound does not change the verdict"
    return f"; censored: {sides} never got there, {ending}"


def _near_empty(recipe: Recipe, verdict: Verdict) -> str:
    if verdict.near is None:
        return ""
    labels = recipe.systems[recipe.reference].label, recipe.systems[verdict.claim.right].label
    return f"; says little: {labels[0]} itself differs from {labels[1]} by only {estimate(verdict.near)}"


def _notes(records: Sequence[Record]) -> list[str]:
    notes = []
    if len({record.predicted_rows for record in records}) > 1:
        notes.append("the systems were not evaluated on the same rows, so their losses are not comparable.")
    if len({record.env.get("source_hash") for record in records}) > 1:
        notes.append("the runs were made by different versions of the source (see manifest.json).")
    untaught = [f"{record.system}-s{record.seed}" for record in records if _untaught(record)]
    if untaught:
        notes.append(f"groups that never had a teacher, though they were to codistil: {', '.join(untaught)}.")
    twins = sorted({record.system for record in records if _taught_by_own_seed(record)})
    if twins:
        notes.append(
            f"the teachers of {', '.join(twins)} have the student's own seed, so they share its start and the order of its "
            "examples; newer runs take the teachers of the next seed."
        )
    return notes


def _taught_by_own_seed(record: Record) -> bool:
    names = (record.config.get("algorithm") or {}).get("teachers") or ()
    return any(re.search(rf"-s{record.seed}(-|$)", name) for name in names)


def _untaught(record: Record) -> bool:
    """Whether a group of the run was to learn from its peers and never had a teacher."""
    return any(group.get("taught") is False for group in record.groups)
