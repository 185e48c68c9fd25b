"""`odist eval` on the command line: one run or several, their table or JSON, and files of their predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odist.cli.printing import MAIN_METRICS, SHOWN_METRICS, as_json, interval, number, print_metrics, print_table
from odist.errors import OdistError, UserError
from odist.run.folder import Run
from odist.run.log import note

FILE_SUFFIXES = (".csv", ".parquet")


def evaluate(
    paths: Sequence[Path],
    *,
    split: str,
    data: Path | None = None,
    output: Path | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Evaluate runs and print what came out; see `odist.engine.evaluation.evaluate`.

    output: of one run a .csv or .parquet file, of several a folder
    Of several runs, those that cannot be evaluated are named at the end, after the results of the others.
    """
    runs = [Run.open(path) for path in paths]
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder. `odist prepare` makes one.")
    files = output_files(runs, output)
    from odist.engine import evaluation
    from odist.measure.prediction_writer import make_writable

    for file in files:
        if file is not None:
            make_writable(file)
    results: list[dict[str, Any]] = []
    failures: list[OdistError] = []
    for run, file in zip(runs, files, strict=True):
        try:
            results.append(evaluation.evaluate(run, split=split, data=data, output=file, device=device))
        except OdistError as error:
            if len(runs) == 1:
                raise
            failures.append(error)
            continue
        if words := run.missing_words():
            note(words)
        trained_on = run.config.get("launch", {}).get("device", "cpu")
        if device is None and results[-1]["device"] != trained_on:
            note(
                f"{run.path}: trained on {trained_on}, which this machine does not have; evaluated on "
                f"{results[-1]['device']}, which may differ in the last digits."
            )
    if json:
        print(as_json(results[0] if len(runs) == 1 else results))
    elif results:
        where = f"{split} part of {data or 'its own data'}"
        if len(runs) == 1:
            print(f"{runs[0].path}: {where}, step {results[0].get('step')}")
            print_metrics({name: value for name, value in results[0].items() if name != "step"})
        else:
            print(f"{len(results)} runs, {where}")
            print_evaluations(results)
        if output is not None:
            print(f"predictions: {output}")
    if failures:
        raise UserError(f"{len(failures)} of {len(runs)} runs were not evaluated:\n" + "\n".join(map(str, failures)))


def output_files(runs: Sequence[Run], output: Path | None) -> list[Path | None]:
    """Where the predictions of each run go: `output` itself, or a file in it named after the run."""
    if output is None:
        return [None] * len(runs)
    output = output.expanduser()
    is_folder = os.path.isdir(output)  # unlike Path.is_dir it does not raise for a name that is too long
    if output.suffix in FILE_SUFFIXES and not is_folder:
        if len(runs) > 1:
            raise UserError(
                f"--output {output}: {len(runs)} runs need a folder, for one file each. "
                f"Type --output {output.with_suffix('')}."
            )
        return [output]
    if output.suffix and not is_folder:
        raise UserError(f"--output {output}: expected a name that ends in .csv or .parquet, or a folder.")
    names = [run.path.resolve().name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"--output {output}: two of the runs are called {twice}, and so would be their files. "
            "Evaluate them one by one, each with a file of its own."
        )
    return [output / f"{name}.parquet" for name in names]


def print_evaluations(results: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a run: its metrics, the main one with its interval."""
    names = [name for name in (*SHOWN_METRICS, "calibration_error") if any(name in result for result in results)]
    lines = []
    for result in results:
        line = {"run": str(result["run"]), "rows": number(result["rows"]), "step": number(result["step"])}
        for name in names:
            line[name] = number(result.get(name))
            if name in MAIN_METRICS:
                line[f"{name}, 95 %"] = interval(result.get(f"{name}_interval"))
        lines.append(line)
    print_table(lines, right=set(lines[0]) - {"run"}, dispensable=("step", "rows", *reversed(names[1:])))
