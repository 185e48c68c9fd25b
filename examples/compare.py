"""Does a pair beat one model in the examples? The same scripts over several seeds, and a page of what came out.

    python examples/compare.py --seeds 5 --output reports/examples

Each script is run alone (as group 0 of a pair whose other group never comes), alone for twice the steps, and as a pair of
two processes. A record of every run is added to OUTPUT/runs.jsonl as it ends, so a comparison that was stopped goes on;
OUTPUT/examples.md is made from the records.

Needs `pip install 'odist[transformers,lightning,accelerate]' scikit-learn`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from odist.claims.table import ABSENT, count, estimate
from odist.measure.intervals import Estimate, holm, mean_interval
from odist.run import provenance

SINGLE, TWICE, PAIR = "single", "twice", "pair"
LOWEST, LAST = "lowest_validation_loss", "validation_loss"
# Fixed before the runs: the first is primary, and its p-values are adjusted for the number of examples (Holm).
STATEMENTS = {
    "primary": (LOWEST, SINGLE, "the lowest loss of a copy of the pair is below that of one model with as many steps"),
    "longer": (LOWEST, TWICE, "the lowest loss of a copy is below that of one model with twice the steps"),
    "last": (LAST, SINGLE, "the last loss of a copy is below that of one model with as many steps"),
}
ALPHA = 0.05


@dataclass(frozen=True)
class Example:
    """A script. steps: of its training; batch: examples of a step"""

    script: str
    steps: int
    batch: int


EXAMPLES = {
    "transformers": Example("transformers_trainer.py", steps=400, batch=8),
    "lightning": Example("lightning_module.py", steps=1500, batch=32),
    "accelerate": Example("accelerate_loop.py", steps=1000, batch=64),
    "plain PyTorch": Example("plain_torch.py", steps=2000, batch=64),
}


@dataclass(frozen=True)
class Record:
    """A run: one process, of a pair one of two.

    examples: that it has trained on; teacher_swaps: how often it took newer weights of its peer; seconds: with its start
    """

    example: str
    arm: str
    seed: int
    group: int
    steps: int
    examples: int
    validation_loss: float
    lowest_validation_loss: float
    teacher_swaps: int
    seconds: float
    hardware: str


def main() -> None:
    """Run what has no record yet, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("out/examples"))
    parser.add_argument("--examples", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--steps", type=int, help="of every example, in place of its own; for a trial")
    parser.add_argument("--report-only", action="store_true", help="write the page from the records")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    lines = given.output / "runs.jsonl"
    records = [Record(**json.loads(line)) for line in lines.read_text().splitlines()] if lines.exists() else []
    seeds = () if given.report_only else range(given.first_seed, given.first_seed + given.seeds)
    primary_first = [*product(seeds, given.examples, (SINGLE, PAIR)), *product(seeds, given.examples, (TWICE,))]
    for seed, name, arm in primary_first:
        if any((one.example, one.arm, one.seed) == (name, arm, seed) for one in records):
            continue
        found = run(name, arm, seed=seed, steps=(given.steps or EXAMPLES[name].steps) * (1 + (arm == TWICE)))
        records += found
        with lines.open("a") as file:
            file.write("".join(json.dumps(asdict(one)) + "\n" for one in found))
        print(name, arm, f"seed {seed}:", *(f"{one.lowest_validation_loss:.4f}" for one in found), flush=True)
    if not records:
        parser.error(f"{lines} has no record. Leave --report-only out.")
    (given.output / "examples.md").write_text(page(records))
    print(given.output / "examples.md")


def run(name: str, arm: str, *, seed: int, steps: int) -> list[Record]:
    """One run of an arm: its processes at once, with a folder of their own between them."""
    script = Path(__file__).resolve().with_name(EXAMPLES[name].script)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), "--steps", str(steps), "--seed", str(seed), "--url", f"{folder}/pair"]
        started = [
            subprocess.Popen(
                [*command, "--group", str(group)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for group in range(1 + (arm == PAIR))
        ]
        shown = [process.communicate() for process in started]
    records = []
    for group, (process, (said, complaint)) in enumerate(zip(started, shown, strict=True)):
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, process.args))} ended with {process.returncode}:\n{complaint}")
        ended = json.loads(said.splitlines()[-1])
        records.append(
            Record(
                example=name,
                arm=arm,
                seed=seed,
                group=group,
                steps=steps,
                examples=steps * EXAMPLES[name].batch,
                validation_loss=ended[LAST],
                lowest_validation_loss=ended[LOWEST],
                teacher_swaps=int(ended["teacher_swaps"]),
                seconds=round(time.monotonic() - began, 1),
                hardware=hardware(),
            )
        )
    return records


def hardware() -> str:
    """The machine and what runs the examples, in a line."""
    machine, versions = provenance.hardware(), provenance.versions()
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; Python {versions['python']}, "
        f"torch {versions['torch']}"
    )


def by_seed(records: Sequence[Record], name: str, arm: str, value: Callable[[Record], float]) -> dict[int, float]:
    """What an arm reached, by seed; of a pair the mean of its two copies, which is what one copy is expected to reach."""
    own = [one for one in records if (one.example, one.arm) == (name, arm)]
    return {seed: fmean(value(one) for one in own if one.seed == seed) for seed in sorted({one.seed for one in own})}


def difference(records: Sequence[Record], name: str, statement: str) -> Estimate | None:
    """A copy of the pair less its rival, paired by seed, in nats; None without a seed of both."""
    metric, rival, _ = STATEMENTS[statement]
    ours, theirs = (by_seed(records, name, arm, lambda one: getattr(one, metric)) for arm in (PAIR, rival))
    each = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not each:
        return None
    error = stdev(each) / len(each) ** 0.5 if len(each) > 2 else None
    return Estimate(fmean(each), error, max(0, len(each) - 1))


def verdict(found: Estimate | None, p_value: float | None) -> str:
    """What a difference and its p-value say of `below`."""
    if found is None or p_value is None:
        return "too few seeds"
    if p_value > ALPHA:
        return "not decided"
    return "holds" if found.value < 0 else "does not hold"


def page(records: Sequence[Record]) -> str:
    """The page of these records."""
    names = [name for name in EXAMPLES if any(one.example == name and one.arm == PAIR for one in records)]
    seeds = sorted({one.seed for one in records})
    text = [
        "# A pair and one model, in the examples",
        "",
        f"`python examples/compare.py --seeds {len(seeds)} --output reports/examples`",
        "",
        "Held-out loss in nats (of the language model per byte), lower is better. The pair's is the mean of its two copies, "
        "each of which is one model to serve. The lowest of a run's evaluations is what one gets that stops at the right "
        "time; of twice the steps there are twice as many to choose from.",
        "",
    ]
    for metric, title in ((LOWEST, "Lowest loss"), (LAST, "Last loss")):
        text += [f"## {title}", "", "| example | one model | one model, twice the steps | copy of a pair |"]
        text += ["| --- | --- | --- | --- |"]
        for name in names:
            cells = []
            for arm in (SINGLE, TWICE, PAIR):
                values = list(by_seed(records, name, arm, lambda one, m=metric: getattr(one, m)).values())
                cells.append(estimate(fmean(values), mean_interval(values)) if values else ABSENT)
            text.append(f"| {name} | {' | '.join(cells)} |")
        text.append("")
    text += ["## Statements", ""]
    for statement, (_, _, words) in STATEMENTS.items():
        found = [difference(records, name, statement) for name in names]
        given = [None if one is None else one.p_value(one.value) for one in found]
        known = [p_value for p_value in given if p_value is not None]
        adjusted = holm(known) if len(known) == len(given) else given
        text += [f"**{statement.capitalize()}**: {words}.", ""]
        text += ["| example | copy less its rival | p, adjusted | verdict |", "| --- | --- | --- | --- |"]
        for name, one, p_value in zip(names, found, adjusted, strict=True):
            shown = ABSENT if p_value is None else f"{p_value:.2g}"
            value = ABSENT if one is None else estimate(one.value, one.interval(), sign=True)
            text.append(f"| {name} | {value} | {shown} | {verdict(one, p_value)} |")
        text.append("")
    text += [
        "## What was run",
        "",
        "| example | steps | examples of one model | of a pair | swaps of teachers, lowest |",
    ]
    text += ["| --- | --- | --- | --- | --- |"]
    for name in names:
        own = [one for one in records if one.example == name and one.arm == PAIR]
        swaps = min(one.teacher_swaps for one in own)
        text.append(f"| {name} | {own[0].steps} | {count(own[0].examples)} | {count(2 * own[0].examples)} | {swaps} |")
    total = sum(one.examples for one in records)
    text += [
        "",
        f"Intervals of 95 % by Student's t over {len(seeds)} seeds; differences are paired by seed, and group 0 of a pair "
        "begins where the single model does. P-values are adjusted for the number of examples (Holm). The primary statement "
        "was fixed before the runs, and the scripts were not changed after them.",
        "",
        f"{count(total)} examples in all. {'; '.join(sorted({one.hardware for one in records}))}. The two processes of a pair "
        "share the machine with other work, so their teachers' age differs from run to run.",
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
