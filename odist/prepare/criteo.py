"""Criteo display advertising rows: raw files -> a memory-mapped store (odist.data.rows).

A packed row is described in criteo_kernels.py. Reading streams: a thread unpacks, threads parse, rows are
appended in order; then whatever is fitted is fitted on the training part. Memory is a few blocks of the
input and a few chunks of rows, whatever their number. Work lies in `<output>.partial` until it is whole.

The paper (Anil et al. 2018, section 3.1) says nothing about preprocessing or split; every choice here is
an option of CriteoOptions or written beside the code that makes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.rows import FORMAT, RowStore, RowWriter
from odist.errors import Interrupted, UserError
from odist.prepare.criteo_fit import (
    NUM_COLUMNS,
    Split,
    fit_numeric,
    fit_rare,
    in_order,
    load_rare,
    name,
    save_rare,
    seal,
)
from odist.prepare.criteo_input import FEATURES, Layout, find_layout, read_rows
from odist.prepare.partial import Partial, finished_record, no_space
from odist.prepare.sources import Block, Source, find_sources, read_ahead

MAX_LOCATED = 10  # bad rows that the report locates
REASONS = ("", "columns", "label", "integer", "categorical", "empty")
MEANING = ("buckets", "min_count")  # options that give ids their meaning: with `like` the other store's
SPLITTING = ("split", "validation_fraction", "split_seed")
DEFAULTS: dict[str, Any] = {
    "buckets": 1_000_000,
    "min_count": 0,
    "split": "time",
    "validation_fraction": 0.2,
    "split_seed": 0,
}


@dataclass(frozen=True)
class CriteoOptions:
    """Choices of a preparation; None takes the value in brackets, or that of the store named by `like`.

    The paper is silent on all of them. `like` refuses a value that contradicts the other store.
    """

    buckets: int | None = None  # [1,000,000] embedding rows in all; one table shared by the 26 columns, by hashing
    min_count: int | None = None  # [0 = off] ids seen less often in the training part (at most 255) become "rare"
    split: str | None = None  # [time] validation rows: the last ones in file order ("time"), or drawn ones ("random")
    validation_fraction: float | None = None  # [0.2] share of validation rows, in [0, 1)
    split_seed: int | None = None  # [0] of split "random"; non-negative
    bad_rows: str = "refuse"  # refuse: stop at the first | skip: count, locate the first few, go on
    format: str = "auto"  # auto | tsv | csv | parquet; gzip is recognised by itself
    threads: int | None = None  # parsing threads, null: one per core, at most 4; never changes the result
    block_bytes: int = 4 << 20  # text parsed at once; never changes the result
    journal_seconds: float = 5.0  # between two points to continue from; never changes the result


@dataclass
class PrepareReport:
    """What a preparation did. All but `seconds` and `reused` is kept in store.json under "report"."""

    rows: dict[str, int]  # by split
    bad_rows: dict[str, int]  # skipped rows by reason: columns, label, integer, categorical, empty
    bad_locations: list[str]  # "file:line: reason" of the first few; lines from 1, header included
    click_rate: float | None  # over all rows; None without labels
    missing: dict[str, int]  # empty cells by column, over all rows
    input_bytes: int  # as they lie on the disk
    store_bytes: int
    sources: list[dict[str, Any]]  # path, bytes, modified_ns, rows
    fingerprint: str
    fitted_fingerprint: str
    seconds: float = 0.0
    reused: bool = False  # the store was there already


@dataclass
class State:
    """How far reading has come: what the journal keeps."""

    source: int = 0  # files finished
    offset: int = 0  # within the next one; see Block.offset
    lines: int = 0  # of that file, finished
    rows: int = 0  # good rows, all files
    clicks: int = 0
    seconds: float = 0.0
    written: dict[str, int] = field(default_factory=dict)  # rows by array file
    source_rows: list[int] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)
    bad_locations: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=lambda: [0] * len(FEATURES))
    fitted: dict[str, Any] | None = None  # once fitted, rows may already be changed in place


@dataclass
class Parsed:
    """One block, parsed: rows int32 [n, 40]; bad int64 [k, 3] (line, reason, detail); counts by reason."""

    rows: np.ndarray
    lines: int
    clicks: int
    missing: np.ndarray
    bad: np.ndarray
    counts: np.ndarray


def prepare_criteo(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: CriteoOptions,
    progress: Callable[[int, int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> PrepareReport:
    """Turn raw Criteo rows into a store; the same call continues an interrupted one, to the same bytes.

    inputs: files, patterns, folders of Parquet files, in order of time; plain or gzip, all labelled or all not
    output: folder to make; done already by the same request: nothing happens and the report says so
    like: a prepared store whose fitted parts and meaning of ids are used; then every row is a validation
        row and the training part is empty
    progress: called with (input bytes done, input bytes in all, rows so far)
    stop: polled; once true, the state is saved and Interrupted raised
    Raises UserError for wrong input, with nothing left behind, and Interrupted.
    """
    began = time.monotonic()
    other = None if like is None else RowStore.open(like)
    chosen = resolve(options, other)
    sources = find_sources(inputs)
    request: dict[str, Any] = {"task": "criteo", "options": chosen, "like": other and other.fitted_fingerprint}
    request["sources"] = [source.identity() for source in sources]
    output = output.expanduser().absolute()
    done = finished_record(output, request)
    if done is not None:
        return PrepareReport(**done["report"], reused=True)
    with Partial(output, request=request) as partial:
        if partial.complete:
            partial.publish()
            return PrepareReport(**RowStore.open(output).meta["report"], reused=True)
        try:
            job = _Preparation(partial, sources, options, chosen, other, progress=progress, stop=stop, began=began)
            return job.run()
        except UserError:
            partial.discard()
            raise
        except OSError as error:
            told = no_space(error, output)
            if told is None:
                raise
            partial.discard()
            raise told from None


def resolve(options: CriteoOptions, other: RowStore | None) -> dict[str, Any]:
    """Options with nothing left open, those of `other` (the `like` store) included; UserError for a wrong one."""
    given = {name: getattr(options, name) for name in DEFAULTS}
    if other is not None:
        from odist.prepare.criteo_kernels import HASH

        if other.task != "criteo" or other.fitted.get("hash") != HASH:
            raise UserError(
                f"{other.path}: not a Criteo store of {HASH}; --like needs one made by `odist prepare criteo`."
            )
        for key in MEANING:
            theirs = other.meta["options"][key]
            if given[key] not in (None, theirs):
                raise UserError(
                    f"{key}={given[key]} contradicts {other.path}, which has {theirs}. With --like leave it out."
                )
        wrong = [key for key in SPLITTING if given[key] is not None]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: with --like every row becomes a validation row. Leave it out.")
        chosen = {key: other.meta["options"][key] for key in MEANING} | dict.fromkeys(SPLITTING)
    else:
        chosen = {key: DEFAULTS[key] if value is None else value for key, value in given.items()}
        _check(chosen)
    for key, allowed in (("bad_rows", ("refuse", "skip")), ("format", ("auto", "tsv", "csv", "parquet"))):
        chosen[key] = getattr(options, key)
        if chosen[key] not in allowed:
            raise UserError(f"{key}={chosen[key]!r}: expected one of {', '.join(allowed)}.")
    return chosen


def _check(chosen: dict[str, Any]) -> None:
    if not 1 <= chosen["buckets"] < 2**31:
        raise UserError(f"buckets={chosen['buckets']}: expected a number from 1 to 2147483647.")
    if not 0 <= chosen["min_count"] <= 255:
        raise UserError(f"min_count={chosen['min_count']}: expected a number from 0 (off) to 255.")
    if chosen["split"] not in ("time", "random"):
        raise UserError(f"split={chosen['split']!r}: expected time or random.")
    if not 0 <= chosen["validation_fraction"] < 1:
        raise UserError(f"validation_fraction={chosen['validation_fraction']}: expected a share from 0 to below 1.")
    if not 0 <= chosen["split_seed"] < 2**63:
        raise UserError(f"split_seed={chosen['split_seed']}: expected a non-negative number below 2**63.")


def describe(reason: int, detail: int, *, labelled: bool) -> str:
    """Why a row is bad, in words. reason, detail: as criteo_kernels.parse_rows gives them."""
    return {
        "columns": f"{detail} columns instead of {len(FEATURES) + labelled}",
        "label": "the label is not 0 or 1",
        "integer": f"{FEATURES[min(detail, 38)]} is not an integer of at most 18 digits",
        "categorical": f"{FEATURES[min(detail, 38)]} is not a hexadecimal number of at most 8 digits",
        "empty": "an empty line",
    }[REASONS[reason]]


class _Preparation:
    """One call: reading, fitting, committing, with `state` as the only thing that changes."""

    def __init__(
        self,
        partial: Partial,
        sources: list[Source],
        options: CriteoOptions,
        chosen: dict[str, Any],
        other: RowStore | None,
        *,
        progress: Callable[[int, int, int], None] | None,
        stop: Callable[[], bool] | None,
        began: float,
    ) -> None:
        self.partial, self.sources, self.options, self.chosen, self.other = partial, sources, options, chosen, other
        self.progress, self.stop = progress, stop
        self.threads = options.threads or min(4, len(os.sched_getaffinity(0)))
        self.files = ("train.npy", "validation.npy") if chosen["split"] == "random" else ("rows.npy",)
        self.state = State(written=dict.fromkeys(self.files, 0), source_rows=[0] * len(sources))
        if partial.journal is not None:
            self.state = State(**partial.journal)
        self.began = began - self.state.seconds
        self.total_bytes = sum(source.bytes for source in sources)

    def run(self) -> PrepareReport:
        layouts = [find_layout(source, format_name=self.chosen["format"]) for source in self.sources]
        for source, layout in zip(self.sources, layouts, strict=True):
            if layout.labelled != layouts[0].labelled:
                with_label, without = (source, self.sources[0]) if layout.labelled else (self.sources[0], source)
                raise UserError(
                    f"{with_label.path} has labels, {without.path} has none. Prepare them apart, the second with --like."
                )
        if self.state.fitted is None:
            self.partial.save(asdict(self.state))
            self._read(layouts)
        splits = self._splits()
        if self.state.fitted is None:
            self.state.fitted = self._fit(splits["train"])
            self._save()
        return self._commit(splits, labelled=layouts[0].labelled)

    def _poll(self) -> None:
        if self.stop is not None and self.stop():
            raise Interrupted(
                f"stopped after {self.state.rows:,} rows; the same command continues ({self.partial.path} keeps them)."
            )

    def _save(self) -> None:
        self.state.seconds = time.monotonic() - self.began
        self.partial.save(asdict(self.state))

    def _read(self, layouts: list[Layout]) -> None:
        state = self.state
        saved = time.monotonic()
        with ExitStack() as stack:
            writers = {
                file: stack.enter_context(
                    RowWriter(self.partial.path / file, columns=NUM_COLUMNS, rows=state.written[file])
                )
                for file in self.files
            }

            def save() -> None:
                for writer in writers.values():
                    writer.flush()
                self._save()

            while state.source < len(self.sources):
                source, layout = self.sources[state.source], layouts[state.source]
                blocks = read_ahead(
                    read_rows(source, layout, offset=state.offset, block_bytes=self.options.block_bytes), depth=2
                )
                parse = self._parser(layout)
                with closing(blocks), closing(in_order(blocks, parse, threads=self.threads)) as results:  # type: ignore[type-var]
                    for block, parsed in results:
                        self._append(writers, parsed, source, layout)
                        state.offset = block.offset
                        self._tell(block)
                        if self.stop is not None and self.stop():
                            save()
                            self._poll()
                        if time.monotonic() - saved > self.options.journal_seconds:
                            save()
                            saved = time.monotonic()
                state.source, state.offset, state.lines = state.source + 1, 0, 0
            for writer in writers.values():
                writer.finish()
        self._save()

    def _tell(self, block: Block) -> None:
        if self.progress is not None:
            before = sum(source.bytes for source in self.sources[: self.state.source])
            self.progress(before + block.done, self.total_bytes, self.state.rows)

    def _parser(self, layout: Layout) -> Callable[[Block], Parsed]:
        from odist.prepare import criteo_kernels as kernels

        buckets, table = self.chosen["buckets"], kernels.log_table()
        missing_ids = kernels.special_ids(kernels.MISSING_VALUE, buckets)
        shortest = len(FEATURES) + 2 * layout.labelled  # bytes of a row with nothing but separators

        def parse(block: Block) -> Parsed:
            text = np.frombuffer(block.text, dtype=np.uint8)
            out = np.empty((len(text) // shortest + 1, NUM_COLUMNS), dtype=np.int32)
            missing, counts = np.zeros(len(FEATURES), dtype=np.int64), np.zeros(kernels.NUM_REASONS, dtype=np.int64)
            bad = np.zeros((MAX_LOCATED, 3), dtype=np.int64)
            rows, lines, clicks = kernels.parse_rows(
                text, layout.separator, layout.labelled, buckets, missing_ids, table, out, out.view(np.float32), missing, bad, counts
            )  # fmt: skip
            return Parsed(out[:rows], lines, clicks, missing, bad[: min(MAX_LOCATED, int(counts.sum()))], counts)

        return parse

    def _append(self, writers: dict[str, RowWriter], parsed: Parsed, source: Source, layout: Layout) -> None:
        state = self.state
        above = state.lines + (layout.header_lines if state.offset == 0 else 0)
        for line, reason, detail in parsed.bad.tolist():
            if len(state.bad_locations) < MAX_LOCATED:
                why = describe(reason, detail, labelled=layout.labelled)
                state.bad_locations.append(f"{source.path}:{above + line}: {why}")
        for reason in np.flatnonzero(parsed.counts):
            state.bad[REASONS[reason]] = state.bad.get(REASONS[reason], 0) + int(parsed.counts[reason])
        if state.bad and self.chosen["bad_rows"] == "refuse":
            raise UserError(
                f"{state.bad_locations[0]}. Bad rows so far: {sum(state.bad.values()):,}, after {state.rows + len(parsed.rows):,} good ones. "
                "Repair the file, or leave bad rows out with --bad-rows skip."
            )
        if self.chosen["split"] == "random":
            from odist.prepare.criteo_kernels import drawn

            threshold = int(self.chosen["validation_fraction"] * 2**53)
            mask = drawn(state.rows, len(parsed.rows), self.chosen["split_seed"], threshold)
            writers["train.npy"].append(parsed.rows[~mask])
            writers["validation.npy"].append(parsed.rows[mask])
        else:
            writers["rows.npy"].append(parsed.rows)
        state.written = {file: writer.rows for file, writer in writers.items()}
        state.lines = above + parsed.lines
        state.rows += len(parsed.rows)
        state.clicks += parsed.clicks
        state.source_rows[state.source] += len(parsed.rows)
        state.missing = [a + b for a, b in zip(state.missing, parsed.missing.tolist(), strict=True)]

    def _splits(self) -> dict[str, Split]:
        total, written = self.state.rows, self.state.written
        if total == 0:
            raise UserError(f"no row of the input could be used; the first: {self.state.bad_locations[0]}.")
        if self.other is not None:
            return {"train": Split("rows.npy", 0, 0), "validation": Split("rows.npy", 0, total)}
        if self.chosen["split"] == "random":
            splits = {part: Split(f"{part}.npy", 0, written[f"{part}.npy"]) for part in ("train", "validation")}
        else:
            border = total - round(total * self.chosen["validation_fraction"])
            splits = {"train": Split("rows.npy", 0, border), "validation": Split("rows.npy", border, total)}
        if splits["train"].rows == 0:
            raise UserError(
                f"{total:,} rows are too few: none is left to train on. Give more rows, or a smaller validation_fraction."
            )
        return splits

    def _fit(self, train: Split) -> dict[str, Any]:
        from odist.prepare.criteo_kernels import HASH

        folder, buckets, min_count = self.partial.path, self.chosen["buckets"], self.chosen["min_count"]
        if self.other is not None:
            fitted = self.other.fitted
            if fitted["rare"] is not None:
                save_rare(folder, load_rare(self.other.path, fitted["rare"], buckets=buckets))
            return fitted
        mean, deviation = fit_numeric(folder, train, threads=self.threads, poll=self._poll)
        rare = None
        if min_count:
            rare = save_rare(folder, fit_rare(folder, train, buckets=buckets, min_count=min_count, poll=self._poll))
        return {"hash": HASH, "buckets": buckets, "min_count": min_count, "rare": rare, "numeric": "sign(x) log1p(|x|)",
                "numeric_mean": mean, "numeric_std": deviation}  # fmt: skip

    def _commit(self, splits: dict[str, Split], *, labelled: bool) -> PrepareReport:
        state, fitted, folder = self.state, self.state.fitted, self.partial.path
        assert fitted is not None
        rare = None if fitted["rare"] is None else load_rare(folder, fitted["rare"], buckets=self.chosen["buckets"])
        digests = {
            part: seal(folder, split, rare=rare, threads=self.threads, poll=self._poll)
            for part, split in splits.items()
        }
        fitted_fingerprint = name(fitted)
        meaning = {key: self.chosen[key] for key in (*MEANING, *SPLITTING)}
        if meaning["split"] != "random":
            meaning["split_seed"] = None  # has no effect
        shape = {part: split.rows for part, split in splits.items()}
        content = {
            "format": FORMAT,
            "task": "criteo",
            "rows": shape,
            "digests": digests,
            "options": meaning,
            "fitted": fitted,
        }
        sources = [{**s.identity(), "rows": n} for s, n in zip(self.sources, state.source_rows, strict=True)]
        report = PrepareReport(
            rows=shape,
            bad_rows=state.bad,
            bad_locations=state.bad_locations,
            click_rate=state.clicks / state.rows if labelled else None,
            missing=dict(zip(FEATURES, state.missing, strict=True)),
            input_bytes=self.total_bytes,
            store_bytes=sum(path.stat().st_size for path in folder.glob("*.npy")),
            sources=sources,
            fingerprint=name(content),
            fitted_fingerprint=fitted_fingerprint,
        )
        kept = {key: value for key, value in asdict(report).items() if key not in ("seconds", "reused")}
        self.partial.commit(
            {
                "format": FORMAT,
                "task": "criteo",
                "fingerprint": report.fingerprint,
                "fitted_fingerprint": fitted_fingerprint,
                "columns": NUM_COLUMNS,
                "splits": {part: asdict(split) for part, split in splits.items()},
                "fitted": fitted,
                "options": self.chosen,
                "report": kept,
            }
        )
        report.seconds = time.monotonic() - self.began
        return report
