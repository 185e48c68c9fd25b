"""What `odist prepare` prints: what a preparation did, in words and aligned numbers, and what to type next."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from odist.cli.printing import as_json

if TYPE_CHECKING:
    from odist.prepare.criteo.options import CriteoReport
    from odist.prepare.images.options import ImageReport
    from odist.prepare.job import Report
    from odist.prepare.table.options import TableReport
    from odist.prepare.text.options import TextReport

SPLITS = {"train": "training", "validation": "validation"}
SHOWN = 5  # sources, faults and columns; the rest stands in store.json
Line = tuple[str, str]  # what it is about, in words


def print_criteo(report: CriteoReport, *, output: Path, like: Path | None, json: bool) -> None:
    """Print the report of a Criteo preparation, or its JSON."""
    lines = _splits({"rows": report.rows})
    lines.append(
        ("clicks", "no labels" if report.click_rate is None else f"{100 * report.click_rate:.2f} % of the rows")
    )
    lines += _bad_and_empty(report)
    if json:
        print(as_json(dataclasses.asdict(report)))
        return
    _print(report, output, lines)
    _print_next("criteo", report.rows, output=output, like=like, labelled=report.click_rate is not None)


def print_table_report(report: TableReport, *, output: Path, like: Path | None, json: bool) -> None:
    """Print the report of the preparation of a table, or its JSON."""
    if json:
        print(as_json(dataclasses.asdict(report)))
        return
    lines = _splits({"rows": report.rows})
    rates = report.label_rates or {}
    lines.append(("labels", ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in rates.items()) or "none"))
    if report.vocabularies:
        lines.append(("vocabularies", ", ".join(f"{n} {size:,} values" for n, size in report.vocabularies.items())))
    lines.append(("embeddings", f"{report.embedding_rows:,} rows"))
    lines += _bad_and_empty(report)
    _print(report, output, lines)
    _print_next("table", report.rows, output=output, like=like, labelled=report.label_rates is not None)


def _bad_and_empty(report: CriteoReport | TableReport) -> list[Line]:
    rows, bad = sum(report.rows.values()), sum(report.bad_rows.values())
    empty = sum(report.missing.values())
    lines: list[Line] = []
    if bad:
        lines.append(("left out", f"{bad:,} bad rows: {_counts(report.bad_rows)}"))
        lines += _located(report.bad_locations, bad)
    if empty:
        most = sorted(report.missing.items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{name} {100 * number / rows:.1f} %" for name, number in most if number)
        lines.append(("empty", f"{100 * empty / (rows * len(report.missing)):.1f} % of the cells; most in {shown}"))
    return lines


def print_text(report: TextReport, *, output: Path, like: Path | None, json: bool) -> None:
    """Print the report of a text preparation, or its JSON."""
    lines = _splits({"documents": report.documents, "tokens": report.tokens})
    lines += _splits({"text": report.text_bytes}, show=size)
    tokens = max(1, sum(report.tokens.values()))
    lines.append(
        (
            "vocabulary",
            f"{report.vocabulary:,} pieces; {100 * report.unknown_tokens / tokens:.3g} % of the tokens unknown",
        )
    )
    lines.append(("records", f"{report.records:,} read, {report.kept:,} kept"))
    if report.dropped:
        lines.append(("left out", f"{sum(report.dropped.values()):,} records: {_counts(report.dropped)}"))
    if report.dropped_paragraphs:
        paragraphs = f"{sum(report.dropped_paragraphs.values()):,} of {report.paragraphs:,} paragraphs"
        lines.append(("", f"{paragraphs}: {_counts(report.dropped_paragraphs)}"))
    if report.damage:
        lines.append(("damage", f"{_counts(report.damage)}; what was readable is kept"))
        lines += _located(report.damage_located, sum(report.damage.values()))
    if json:
        print(as_json(dataclasses.asdict(report)))
        return
    _print(report, output, lines, speed=f"{report.tokens_per_second:,.0f} tokens/s")
    _print_next("text", report.documents, output=output, like=like, labelled=True)


def print_imagenet(report: ImageReport, *, output: Path, like: Path | None, json: bool) -> None:
    """Print the report of an image preparation, or its JSON."""
    lines = _splits({"images": report.images})
    lines.append(("classes", f"{report.classes:,}"))
    if report.dropped:
        dropped = sum(report.dropped.values())
        lines.append(
            (
                "left out",
                f"{dropped:,} of {report.files:,} files: {_counts(report.dropped)}; all of them in dropped.jsonl",
            )
        )
        lines += _located(report.dropped_located, len(report.dropped_located))
    changes = [f"{number:,} {kind} encoded again" for kind, number in report.converted.items()]
    changes += [
        f"{number:,} {what}" for number, what in ((report.resized, "resized"), (report.grayscale, "grey")) if number
    ]
    if changes:
        lines.append(("changed", ", ".join(changes)))
    if report.duplicates:
        lines.append(("repeated", f"{report.duplicates:,} images equal another one byte for byte"))
    if json:
        print(as_json(dataclasses.asdict(report)))
        return
    _print(report, output, lines, speed=f"{report.images_per_second:,.0f} images/s")
    _print_next("imagenet", report.images, output=output, like=like, labelled=True)


def size(num_bytes: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _splits(table: Mapping[str, Mapping[str, int]], *, show: Callable[[int], str] = "{:,}".format) -> list[Line]:
    cells = {name: {split: show(row.get(split, 0)) for split in SPLITS} for name, row in table.items()}
    width = max(len(text) for row in cells.values() for text in row.values())
    return [
        (name, ", ".join(f"{text:>{max(width, 9)}} {SPLITS[split]}" for split, text in row.items()))
        for name, row in cells.items()
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def _located(places: Sequence[str], number: int) -> Iterator[Line]:
    for place in places[:SHOWN]:
        yield "", f"  {place}"
    if number > min(SHOWN, len(places)):
        yield "", f"  and {number - min(SHOWN, len(places)):,} more"


def _print(report: Report, output: Path, lines: Sequence[Line], *, speed: str = "") -> None:
    shown = [*lines, *_sources(report), ("written", size(report.store_bytes))]
    shown += [("fingerprint", f"{report.fingerprint[:16]}, of what is fitted {report.fitted_fingerprint[:16]}")]
    if not report.reused:
        shown.append(("time", f"{report.seconds:,.1f} s" + (f", {speed}" if speed else "")))
    print(f"{output}: {'was prepared already by the same command' if report.reused else 'prepared'}")
    width = max(len(name) for name, _ in shown)
    for name, text in shown:
        print(f"  {name:<{width}}  {text}".rstrip())


def _sources(report: Report) -> Iterator[Line]:
    number = len(report.sources)
    yield "read", f"{size(report.input_bytes)} of {number:,} {'input' if number == 1 else 'inputs'}"
    for source in report.sources[:SHOWN]:
        name = source.get("path") or source.get("name")
        parts = [size(source["bytes"])] if source.get("bytes") else []
        if "rows" in source:
            parts.append(f"{source['rows']:,} rows")
        if "records" in source:
            parts.append(f"{source['records']:,} records, {source['kept']:,} kept")
        if source.get("modified_ns"):
            parts.append(f"of {time.strftime('%Y-%m-%d %H:%M', time.localtime(source['modified_ns'] / 1e9))}")
        yield "", f"  {name}: {', '.join(parts)}".removesuffix(": ")
    if number > SHOWN:
        yield "", f"  and {number - SHOWN:,} more, see store.json"


def _print_next(verb: str, rows: Mapping[str, int], *, output: Path, like: Path | None, labelled: bool) -> None:
    # What works with this store, and nothing else.
    command, task = f"odist prepare {verb}", TASKS.get(verb, verb)
    evaluate = f"odist eval RUN --data {shlex.quote(str(output))}"
    if not labelled and like is None:
        print(
            "no labels: no model can be trained on these rows, nor can they be evaluated against what was clicked. To "
            "have them predicted by a model that you trained, prepare them like its data:\n"
            f"  {command} --input FILE --like STORE --output NEW\n"
            "  odist eval RUN --data NEW --output predictions.parquet"
        )
    elif not labelled:
        print(f"no labels: usable for `odist eval` only: {evaluate} --output predictions.parquet")
    elif not rows.get("train"):
        print(f"use it: {evaluate}\n  RUN is a run on {like}. --validation-fraction SHARE makes training rows too.")
    elif not rows.get("validation"):
        print(
            "no validation rows, by which `odist train` evaluates every run: to train on these rows prepare them with "
            "a --validation-fraction above 0"
        )
    else:
        train = f"odist train task={task} data=prepared {_data_path(output)}"
        print(f"use it: {train}")
        if like is not None:
            print(
                f"  with a model that was trained on {like} as teacher: {train} algorithm=distill "
                "'algorithm.teachers=[RUN]'"
            )


def _data_path(output: Path) -> str:
    # As a shell and Hydra take it.
    if re.fullmatch(r"[\w./+~-]+", str(output)):
        return f"data.path={output}"
    escaped = str(output).replace("'", "\\'")
    word = f"data.path='{escaped}'"
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


TASKS = {"table": "criteo", "text": "lm"}  # of preparations that have another name
