"""`odist bench`: runs a suite of measurements and writes its numbers as a table and as JSON.

A missed goal is reported and fails nothing: timings are not tests.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist.bench.rounds import Row
from odist.claims.table import markdown_table
from odist.config.suggest import choose
from odist.errors import UserError
from odist.files import write_atomically
from odist.run import provenance

COLUMNS = {
    "what": "ratio of",
    "measured": "min – median – max",
    "goal": "goal",
    "met": "met",
    "cpu": "processor time",
    "rate": "examples/s",
}

# Suites, each a module of this folder with `measure`, and what the rows of each have in common.
SUITES = {
    "quick": "The paper's Criteo model (2560-1024-256) in fp32, one thread unless said. Ratios of seconds per step, "
    "paired",
    "lm": "The language model in fp32, one thread unless said; examples are tokens, of reading they are records. Ratios "
    "of seconds for the same work, paired",
    "cluster": "Criteo's model (2560-1024-256) with a dense table, batch 100 in every process, one thread each, gloo on one "
    "machine; more processes than cores wait for each other. Ratios of seconds or bytes of a step, paired",
    "faults": "A small Criteo model in fp32, two groups as processes of one thread, a store between them "
    "(exchange.timing=freshest), a reload of the teacher every 20 steps. Ratios of group 0's median step, paired",
    "teachers": "Students in fp32, one thread; the paper's Criteo model with reloads, language models of 24,000 classes "
    "without; examples of those are tokens. Ratios of seconds per step, paired",
    "images": "Random crops of synthetic photographs and ResNet-8 on images of 32 pixels, one thread; examples are "
    "images. Ratios of seconds for the same work, paired",
}


@dataclass(frozen=True)
class Result:
    """The numbers of one suite and where they come from.

    command: what was typed; load: mean number of running processes over the minute before and the last one
    """

    suite: str
    command: str
    rounds: int
    seconds: float
    load: tuple[float, float]
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: every ratio of every round, hardware and versions."""
        return {
            "suite": self.suite,
            "command": self.command,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 1),
            "load_before": round(self.load[0], 2),
            "load_after": round(self.load[1], 2),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            "source_hash": provenance.source_hash(),
            "rows": [_as_dict(row) for row in self.rows],
        }


def run(suite: str, *, rounds: int = 5, output: Path | None = None, kills: int | None = None) -> Result:
    """Run a suite; with `output`, write SUITE.json and SUITE.md into that folder.

    rounds: paired measurements of every arm; kills: of processes, by the suite faults; None: as many as it likes
    Raises UserError for an unknown suite, kills of another one, and when `output` is not a folder, OdistError when a process of the benchmark
    ends early.
    """
    if suite not in SUITES:
        raise UserError(f"{suite}: no such suite. {choose(suite, SUITES)}")
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: expected a folder; a file lies there.")
    if kills is not None and suite != "faults":
        raise UserError(f"--kills {kills}: only `odist bench faults` kills processes.")
    options = {} if kills is None else {"kills": kills}
    measure = measure_of(suite)
    began, load = time.perf_counter(), os.getloadavg()[0]
    rows = measure(rounds=rounds, say=lambda text: print(text, file=sys.stderr, flush=True), **options)
    command = (
        f"odist bench {suite} --rounds {rounds}"
        + (f" --kills {kills}" if kills else "")
        + (f" --output {output}" if output else "")
    )
    result = Result(suite, command, rounds, time.perf_counter() - began, (load, os.getloadavg()[0]), rows)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / f"{suite}.json", json.dumps(result.to_dict(), indent=1) + "\n")
        write_atomically(output / f"{suite}.md", markdown(result))
    return result


def measure_of(suite: str) -> Callable[..., list[Row]]:
    """The function that measures a suite."""
    measure: Callable[..., list[Row]] = importlib.import_module(f"odist.bench.{suite}").measure
    return measure


def _as_dict(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "text": row.text,
        "min": round(min(row.ratios), 5),
        "median": round(row.median, 5),
        "max": round(max(row.ratios), 5),
        "goal": row.goal,
        "goal_is": None if row.goal is None else "at least" if row.at_least else "at most",
        "met": row.met,
        "ratios": [round(ratio, 5) for ratio in row.ratios],
        "cpu_ratios": [round(ratio, 5) for ratio in row.cpu],
        "examples_per_second": {arm: round(rate, 1) for arm, rate in row.examples_per_second.items()},
    }


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 2 else f"{value:.2f}"


def cells(row: Row) -> dict[str, str]:
    """The texts of one row of the table."""
    bound = "" if row.goal is None else ("≥ " if row.at_least else "≤ ") + f"{row.goal:g}"
    return {
        "what": row.text,
        "measured": " – ".join(_number(value) for value in (min(row.ratios), row.median, max(row.ratios))),
        "goal": bound or "–",
        "met": {True: "yes", False: "no", None: "–"}[row.met],
        "cpu": _number(statistics.median(row.cpu)) if row.cpu else "–",
        "rate": " / ".join(f"{rate:,.0f}".replace(",", " ") for rate in row.examples_per_second.values()),
    }


def remarks(result: Result) -> Sequence[str]:
    """Lines below the table: machine, method, load."""
    hardware, versions = provenance.hardware(), provenance.versions()
    return [
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, GPU: {hardware['gpu'] or 'none'}; "
        f"Python {versions['python']}, torch {versions['torch']}.",
        f"{SUITES[result.suite]} within each of {result.rounds} interleaved rounds; goals are for the median. Processor "
        "time: the median of the same ratios in seconds of processor time, which other work disturbs less. examples/s "
        "are medians of the two arms.",
        f"Load of the machine: {result.load[0]:.1f} before (other work when it is not near 0), {result.load[1]:.1f} "
        "after. Other work widens the ranges, most of all where two threads or two processes need both cores.",
    ]


def markdown(result: Result) -> str:
    """The table as a page."""
    lines = [f"# odist bench {result.suite}", "", f"`{result.command}`", ""]
    lines += [markdown_table(COLUMNS, [cells(row) for row in result.rows])]
    lines += [line + "\n" for line in remarks(result)]
    return "\n".join(lines).rstrip("\n") + "\n"


def show(result: Result) -> None:
    """Print the table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS.values(), show_lines=False)
    for row in result.rows:
        table.add_row(*cells(row).values())
    console = Console()
    console.print(table)
    for line in remarks(result):
        console.print(line, highlight=False)
