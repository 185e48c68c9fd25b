"""A recipe's report: page, table, figure and manifest, made from its folder alone.

    reports/NAME/recipe.yaml           the recipe as it was
                 runs.jsonl            one record a run
                 references/*.json     other methods on the same rows
                 tuning.json           how the settings were chosen
                 NAME.md NAME.csv NAME.svg manifest.json   made from those

The same folder gives the same bytes, wherever it lies and whenever it is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from odist.claims.figure import draw_report, paper_points
from odist.claims.frontier import FrontierPoint, frontier_lines, frontier_parts
from odist.claims.judged import home_of, minutes_of, read_judged
from odist.claims.quantities import loss_or_accuracy
from odist.claims.recipe import Recipe
from odist.claims.record import RUNS_FILE, Record
from odist.claims.references import FittedReference, read_reference
from odist.claims.retrains import Retrains
from odist.claims.section import variant_parts
from odist.claims.summary import SystemSummary, summarise
from odist.claims.table import csv_table
from odist.claims.tuning import FILE as TUNING_FILE
from odist.claims.tuning import TuningFile, read_tuning, tuning_parts
from odist.claims.verdicts import Verdict
from odist.files import write_atomically
from odist.measure.churn import PAIR_METRICS

PAPER_FILE = "paper.csv"
_HOW_TARGETS = (
    " Steps to {target} are those of the first crossing, straight lines between evaluations; the time of evaluations "
    "is not counted. A model that never gets there is censored: it counts with its horizon, marked > in a mean and in a "
    "ratio whose other side it is. A claim is decided where that bound decides it; a bound from above, twice its "
    "horizon, is taken only for a system most of whose models got there. An ensemble's curve is that of its mean "
    "prediction."
)


def build_report(folder: Path, *, name: str, echo: Callable[[str], None] = print) -> list[Path]:
    """Write page, table, figure and manifest of the records in `folder`; the paths written.

    name: the recipe's, and the base name of the files
    echo: told of every line of the records that cannot be read
    UserError when the folder holds no recipe or no record.
    """
    judged = read_judged(folder, name=name, echo=echo)
    recipe, records, retrains, verdicts = judged.recipe, judged.records, judged.retrains, judged.verdicts
    home = home_of(recipe, folder)
    summaries = summarise(retrains, recipe)
    tuning = read_tuning(home / TUNING_FILE)
    references = {
        (variant, name): read_reference(folder, variant=variant, name=name)
        for variant, layer in recipe.variants.items()
        for name in layer.references
    }
    paper = None
    if recipe.paper_figure and recipe.targets:
        paper = paper_points(folder / PAPER_FILE, metric=recipe.targets.metric)
    frontiers = {variant: frontier_lines(recipe, judged.frontier, variant=variant) for variant in recipe.variants}
    written = draw_report(
        folder / name, recipe=recipe, summaries=summaries, records=records, frontiers=frontiers, paper=paper
    )
    texts = {
        f"{name}.md": _page(
            recipe,
            command=judged.command,
            summaries=summaries,
            retrains=retrains,
            verdicts=verdicts,
            records=records,
            references=references,
            tuning=tuning,
            frontiers=frontiers,
        ),
        f"{name}.csv": csv_table([_csv_row(recipe, summary) for summary in summaries]),
    }
    for file, text in texts.items():
        write_atomically(folder / file, text)
        written.append(folder / file)
    manifest = _manifest(recipe, command=judged.command, records=records, files=sorted(written), verdicts=verdicts)
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return [*written, folder / "manifest.json"]


def _page(
    recipe: Recipe,
    *,
    command: str,
    summaries: Sequence[SystemSummary],
    retrains: Mapping[tuple[str, str], Retrains],
    verdicts: Mapping[str, Sequence[Verdict]],
    records: Sequence[Record],
    references: Mapping[tuple[str, str], FittedReference | None],
    tuning: TuningFile | None,
    frontiers: Mapping[str, Mapping[str, Sequence[FrontierPoint]]],
) -> str:
    parts = [f"# {recipe.title}\n", *([recipe.description + "\n"] if recipe.description else [])]
    scale = records[0].scale
    runs = (
        f"../{recipe.home}{'' if scale == recipe.scale else f'-{scale}'}/{RUNS_FILE}" if recipe.runs_of else RUNS_FILE
    )
    first = loss_or_accuracy(recipe.metrics[0])
    shown = f"{first[0].upper()}{first[1:]} against churn, and learning curves"
    if recipe.targets:
        shown = "Learning curves here, and the paper's"
    parts.append(f"Made from the records in `{runs}` by\n\n    {command}\n")
    minutes = minutes_of(records)
    parts.append(f"All of its training took {minutes:.0f} minutes on two cores, without evaluations and tuning.\n")
    if recipe.runs_of:
        parts.append("Other pages read the same runs, so that their verdicts are no independent evidence.\n")
    parts.append(f"![{shown}]({recipe.name}.svg)\n")
    if recipe.judged_later:
        parts.append("Note: claims or targets of this page were changed after its runs were made.\n")
    for variant, layer in recipe.variants.items():
        own = [summary for summary in summaries if summary.variant == variant]
        if not own and layer.scales is not None and records[0].scale not in layer.scales:
            continue
        if variant:
            parts.append(f"## {layer.label or variant}\n")
        if not own:
            needed = f" It needs `--{layer.needs.replace('_', '-')}`." if layer.needs else ""
            parts.append(f"Not run.{needed}\n")
            continue
        parts += variant_parts(
            recipe,
            variant=variant,
            summaries=own,
            retrains={system: own for (where, system), own in retrains.items() if where == variant},
            verdicts=verdicts[variant],
            records=[record for record in records if record.variant == variant],
            references={name: references[variant, name] for name in layer.references},
            tuning=tuning,
        )
        parts += frontier_parts(recipe, frontiers[variant])
    parts += ["## How to read it\n", _how_to_read(recipe, records)]
    parts += tuning_parts(recipe, tuning, scale=records[0].scale)
    parts.append("## Where it ran\n")
    parts += [f"- {line}" for line in _surroundings(records)]
    return "\n".join(parts).rstrip() + "\n"


def _how_to_read(recipe: Recipe, records: Sequence[Record]) -> str:
    classes = any(name in PAIR_METRICS for name in recipe.metrics) and any(
        "top1" in record.metrics for record in records
    )
    measure = "|p1 - p2| over validation rows and all pairs of retrains"
    if classes:
        measure = "half the sum over the classes of |p1 - p2|, over validation rows and all pairs of retrains"
    text = (
        "A run is one observation: what its copies (the groups of a codistilled run) have is averaged first, and the "
        "members of an ensemble whose first one is, bit for bit, a single model's run count as further retrains of "
        "that model. "
        f"Metrics are means over runs with Student's 95 % interval. Churn is the mean of {measure}, with the "
        "delete-one-run jackknife 95 % interval; no interval below three retrains. "
        "A claim holds, or does not, when the interval of the difference over common seeds lies wholly on one side and "
        "its p, adjusted by Holm for the page's other claims of the same kind (primary, or not), is at most 0.05; "
        "otherwise it is not resolved. Intervals are not adjusted."
    )
    if recipe.churn_against is not None:
        label = recipe.systems[recipe.churn_against].label
        text += (
            f' Churn against the released model is that between a run and the run of the next seed of "{label}", the one '
            "that teaches it or gives it its first weights where either happens, so that start and order are never shared. Its "
            "own line there is what another seed changes on the same rows."
        )
    if any(claim.requires for claim in recipe.claims):
        text += " A claim that requires another is not tested where that one does not hold."
    if any(isinstance(value, list) for system in recipe.systems.values() for value in system.paper.values()):
        text += " The paper gives the mean of five repeats and half their range."
    if recipe.targets is None:
        return text + "\n"
    target = "a loss" if loss_or_accuracy(recipe.targets.metric) == "loss" else "a target"
    return text + _HOW_TARGETS.format(target=target) + "\n"


def _surroundings(records: Sequence[Record]) -> list[str]:
    machines: dict[str, int] = {}
    for record in records:
        hardware = record.env.get("hardware") or {}
        size = (f"{hardware.get('cores')} cores", f"{hardware.get('memory_gb')} GB")
        text = ", ".join(part for part in (hardware.get("cpu"), *size, hardware.get("gpu") or "no GPU") if part)
        machines[text] = machines.get(text, 0) + 1
    lines = [f"{text}: {number} runs" for text, number in sorted(machines.items())]
    versions = {f"{key} {value}" for record in records for key, value in (record.env.get("versions") or {}).items()}
    commits = sorted({str(record.env.get("commit")) for record in records})
    return [*lines, f"versions: {', '.join(sorted(versions)) or 'unknown'}", f"commit: {', '.join(commits)}"]


def _csv_row(recipe: Recipe, summary: SystemSummary) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": summary.variant} if any(recipe.variants) else {}
    row |= {"system": summary.system, "retrains": len(summary.seeds)}
    for name, (value, interval) in {**summary.metrics, **summary.churn, "churn_ratio": summary.ratio}.items():
        low, high = interval or (None, None)
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    for name, paper in recipe.systems[summary.system].paper.items():
        value, spread = paper if isinstance(paper, list) else (paper, None)
        row |= {f"{name}_paper": value, f"{name}_paper_half_range": spread}
    return row | summary.costs


def _manifest(
    recipe: Recipe,
    *,
    command: str,
    records: Sequence[Record],
    files: Sequence[Path],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> dict[str, Any]:
    sources = sorted({str(record.env.get("source_hash")) for record in records})
    kept = ("config_hash", "data_fingerprint", "source_hash", "commit", "hardware", "versions")
    return {
        "command": command,
        "recipe": {"name": recipe.name, "sha256": hashlib.sha256(recipe.text.encode()).hexdigest()},
        "scale": records[0].scale,
        "sources": sources,
        "sources_differ": len(sources) > 1,
        "runs": {
            record.name: {"record_sha256": record.sha256, **{key: record.env.get(key) for key in kept}}
            for record in records
        },
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "claims": {
            variant or "all": {verdict.claim.id: verdict.verdict for verdict in its}
            for variant, its in verdicts.items()
        },
    }
