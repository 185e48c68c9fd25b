"""`odist runs`: the runs below some folders, filtered, as a table or as JSON for programs.

Folder names are never broken, so that they can be copied.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odist.cli.printing import MAIN_METRICS, number, state_of, untaught
from odist.cli.train_arguments import GROUPS, typed
from odist.config.identity import flatten
from odist.config.read import known_keys
from odist.config.suggest import unknown_key
from odist.errors import Damaged, UserError
from odist.run.folder import Run

IN_THE_NAME = ("task", "algorithm", "groups", "seed")
ROW = (
    *("path", "name", "task", "data", "scale", "algorithm", "num_groups", "seed", "overrides", "state", "step"),
    *("num_steps", "metric", "value", "metrics", "updated", "untaught_groups", "problem"),
)
COLUMNS = ("run", *IN_THE_NAME, "data", "scale", "state", "step", "metric", "age", "overrides")
RIGHT = {"groups", "seed", "step", "age"}
PLAIN = {"run", "data", "scale", "state", "metric", "overrides"}  # shown without the name of their column
SHOWN_ELSEWHERE = ("task", "algorithm", "seed", "data", "data.path", "scale", "run.")  # of what was overridden
LEAST = 16  # columns in which what was overridden can still be read


@dataclass
class Entry:
    """A run as `odist runs` knows it.

    row: what --json prints; config: dotted keys, with the name of every group under the group, as in `task`
    """

    row: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


def find_entries(folders: Sequence[Path]) -> list[Entry]:
    """Every run at or below the folders; of a damaged one its place and the problem."""
    return [_entry(run) for folder in folders for run in Run.find(folder)]


def _entry(run: Run) -> Entry:
    row: dict[str, Any] = dict.fromkeys(ROW)
    row |= {"path": str(run.path), "name": run.name, "metrics": {}, "overrides": overrides_of(run)}
    try:
        run.check_records()
        config, status = run.config, run.status
        metrics = run.results["metrics"] if (run.path / "results.json").is_file() else {}
        metric = next((name for name in MAIN_METRICS if metrics.get(name) is not None), None)
        problems = [words for words in (run.missing_words(), *untaught(run)) if words]
        flat = dict(flatten(config))
        flat |= {group: flat.get(f"{group}.name", flat.get(group)) for group in GROUPS}
        row |= {
            **{name: flat.get(name) for name in ("task", "scale", "algorithm", "num_groups", "seed")},
            "data": flat.get("data.path") or flat["data"],
            "state": state_of(run),
            "step": status.get("step"),
            "num_steps": status.get("num_steps"),
            "metric": metric,
            "value": metrics.get(metric) if metric else None,
            "metrics": metrics,
            "updated": status.get("updated"),
            "untaught_groups": run.untaught_groups,
            "problem": "; ".join(problems) or None,
        }
    except Damaged as error:
        row |= {"state": "damaged", "problem": str(error)}
        return Entry(row)
    return Entry(row, flat)


def overrides_of(run: Run) -> list[str]:
    """What was typed when the run was started."""
    try:
        return (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


# Filters


def keep(entries: Sequence[Entry], filters: Sequence[str]) -> list[Entry]:
    """The runs for which every filter holds: KEY=VALUE, KEY=VALUE,VALUE or KEY=PATTERN with * and ?.

    A key is a dotted one of the configuration, a group such as `task`, or `state`; another one raises UserError.
    """
    kept = list(entries)
    for text in filters:
        key, _, wanted = text.partition("=")
        known = {*known_keys(), *GROUPS, "state", *(key for entry in entries for key in entry.config)}
        if key not in known:
            raise UserError(unknown_key(key, sorted(known)))
        values = [wanted] if wanted.startswith("[") else wanted.split(",")
        kept = [entry for entry in kept if any(_has(entry, key, value) for value in values)]
    return kept


def _has(entry: Entry, key: str, wanted: str) -> bool:
    if key == "state":
        return fnmatch.fnmatchcase(str(entry.row["state"]), wanted)
    if key not in entry.config:
        return False
    value = entry.config[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            pass
    names = [typed(value)]
    if key in ("data", "data.path") and entry.config.get("data.path"):
        names += [str(entry.config["data.path"]), Path(entry.config["data.path"]).name]
    return any(name == wanted or fnmatch.fnmatchcase(name, wanted) for name in names)


def sort_entries(entries: Sequence[Entry], *, by: str) -> list[Entry]:
    """By path, age (newest first), metric (lowest first), state or algorithm; equals by path, unknown ones last."""
    key = {"age": "updated", "metric": "value"}.get(by, by)
    known = sorted((entry for entry in entries if entry.row[key] is not None), key=lambda entry: str(entry.row["path"]))
    known.sort(key=lambda entry: entry.row[key], reverse=by == "age")
    return [*known, *(entry for entry in entries if entry.row[key] is None)]


# Columns


def chosen_columns(text: str | None, entries: Sequence[Entry]) -> list[str]:
    """Columns of the table: those of `text` after the run, or those that say what the folder names do not.

    Raises UserError for a column that is none of COLUMNS, of the keys and of the metrics of these runs.
    """
    if text is None:
        named = all(_is_named(entry.row) for entry in entries)
        return [column for column in COLUMNS if not (named and column in IN_THE_NAME)]
    columns = ["run", *(name.strip() for name in text.split(",") if name.strip() not in ("", "run"))]
    known = {*COLUMNS, *known_keys(), *GROUPS}
    known |= {name for entry in entries for name in (*entry.config, *entry.row["metrics"])}
    for column in columns:
        if column not in known:
            raise UserError(
                f"--columns {column}: {unknown_key(column, sorted(known))} "
                f"Besides keys and metrics: {', '.join(COLUMNS)}."
            )
    return columns


def _is_named(row: Mapping[str, Any]) -> bool:
    """Whether the folder has the name that odist gives, with task, algorithm and seed."""
    name = row["name"]
    return name.startswith(f"{row['task']}-") and f"{row['algorithm']}-s{row['seed']}-" in name


def column_of(entry: Entry, column: str) -> str:
    """The cell of a column."""
    row = entry.row
    data = row["data"]
    cells = {
        "run": row["path"],
        "groups": typed(row["num_groups"]) if row["num_groups"] is not None else "-",
        "data": Path(data).name if data else "-",
        "state": f"{row['state']}, untaught" if row["untaught_groups"] else row["state"],
        "step": f"{row['step'] or 0}/{row['num_steps'] or '?'}",
        "metric": f"{row['metric']} {number(row['value'])}" if row["metric"] else "-",
        "age": age(row["updated"]),
        "overrides": " ".join(word for word in row["overrides"] if not word.startswith(_elsewhere())) or "-",
    }
    if column in cells:
        return str(cells[column])
    if column in entry.config:
        return typed(entry.config[column])
    return number(row["metrics"].get(column))


def _elsewhere() -> tuple[str, ...]:
    return tuple(name if name.endswith(".") else f"{name}=" for name in SHOWN_ELSEWHERE)


def age(updated: float | None) -> str:
    """Time since `updated` (unix seconds) in its largest unit."""
    if updated is None:
        return "-"
    seconds = max(0.0, time.time() - updated)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


# The table


def columns_of_output() -> int | None:
    """Columns that a line may have: COLUMNS, or the terminal's; None where output goes into a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None


def table(entries: Sequence[Entry], *, columns: Sequence[str], width: int | None) -> Iterator[str]:
    """Lines of the table, each run's name whole; where a line has no room for all columns, a name and indented lines.

    width: columns of the terminal; None for no limit
    """
    rows = [{column: column_of(entry, column) for column in columns} for entry in entries]
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    last = columns[-1]
    before = sum(widths[column] + 2 for column in columns[:-1])
    room = widths[last] if width is None else min(widths[last], width - before)
    if room < min(LEAST, widths[last]) or (last != "overrides" and room < widths[last]):
        yield from _blocks(rows, width=width or 80)
        return
    for row in [{column: column for column in columns}, *rows]:
        cells = [
            f"{row[name]:>{widths[name]}}" if name in RIGHT else f"{row[name]:<{widths[name]}}" for name in columns
        ]
        lines = textwrap.wrap(row[last], room, break_long_words=False, break_on_hyphens=False) or [""]
        for index, line in enumerate(lines):
            cells[-1] = f"{line:>{widths[last]}}" if last in RIGHT else line
            yield ("  ".join(cells) if index == 0 else " " * before + line).rstrip()


def _blocks(rows: Sequence[Mapping[str, str]], *, width: int) -> Iterator[str]:
    for row in rows:
        yield row["run"]
        cells = [
            value if name in PLAIN else f"{name} {value}"
            for name, value in row.items()
            if name != "run" and value != "-"
        ]
        text = "  ".join(cell.replace(" ", "\0") for cell in cells)  # a cell stays together where it fits
        for line in _indented(text, width):
            spaced = line.replace("\0", " ")
            yield from [spaced] if len(spaced) <= width else _indented(spaced, width)


def _indented(text: str, width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(width, initial_indent="    ", subsequent_indent="    ")
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return wrapper.wrap(text)


def _with_columns(entry: Entry, columns: Sequence[str]) -> dict[str, Any]:
    if not columns:
        return entry.row
    values = {name: entry.config.get(name, entry.row["metrics"].get(name)) for name in columns}
    return {**entry.row, "columns": values}


def list_runs(words: Sequence[str], *, sort: str, columns: str | None, json: bool) -> None:
    """Print the runs below the folders among `words` that its KEY=VALUE filters keep."""
    from odist.cli.printing import as_json

    filters = [word for word in words if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in words if word not in filters] or [Path("runs")]
    for folder in folders:
        if not folder.is_dir() and folder != Path("runs"):
            raise UserError(f"{folder}: no such folder.")
    found = find_entries(folders)
    shown = sort_entries(keep(found, filters), by=sort)
    where = ", ".join(map(str, folders))
    if json:
        wanted = chosen_columns(columns, shown)[1:] if columns else []
        print(as_json([_with_columns(entry, wanted) for entry in shown]))
    elif shown:
        for line in table(shown, columns=chosen_columns(columns, shown), width=columns_of_output()):
            print(line)
        for entry in shown:
            if entry.row["problem"] is not None:
                print(f"{entry.row['state']}: {entry.row['problem']}")
    elif found:
        print(f"{where}: none of {len(found)} runs has {' '.join(filters)}.")
    else:
        print(f"{where}: no runs yet. `odist train` makes one.")
