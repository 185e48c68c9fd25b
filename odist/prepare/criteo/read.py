"""Reading of the Criteo preparation: blocks of input -> parsed rows, appended in order, journalled.

A thread unpacks, threads parse.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from odist.data.rows import RowWriter
from odist.errors import Interrupted, UserError
from odist.prepare.criteo.fit import NUM_COLUMNS, in_order
from odist.prepare.criteo.input import FEATURES, RowLayout, read_rows
from odist.prepare.criteo.options import CriteoChoices, CriteoOptions
from odist.prepare.inputs import InputFile
from odist.prepare.job import ShowProgress, Stop
from odist.prepare.lines import TextBlock, read_ahead
from odist.prepare.rows import RowState
from odist.run.provenance import num_cores

MAX_LOCATED = 10  # bad rows that the report locates
REASONS = ("", "columns", "label", "integer", "categorical", "empty")  # as numbered in kernels.py


@dataclass
class CriteoState(RowState):
    """How far a preparation of Criteo rows has come."""

    clicks: int = 0
    written: dict[str, int] = field(default_factory=dict)  # rows by array file
    missing: list[int] = field(default_factory=lambda: [0] * len(FEATURES))
    border: int | None = None  # of a random split, instead of the one that the share gives


@dataclass
class Parsed:
    """One block, parsed: rows int32 [n, 40]; bad int64 [k, 3] (line, reason, detail); counts by reason."""

    rows: np.ndarray
    lines: int
    clicks: int
    missing: np.ndarray
    bad: np.ndarray
    counts: np.ndarray


def describe(reason: str, detail: int, *, labelled: bool) -> str:
    """Say why a row is bad. reason: of REASONS; detail: as kernels.parse_rows gives it."""
    if reason == "columns":
        return f"{detail} columns instead of {len(FEATURES) + labelled}"
    if reason == "label":
        return "the label is not 0 or 1"
    if reason == "integer":
        return f"{FEATURES[detail]} is not an integer of at most 18 digits"
    if reason == "categorical":
        return f"{FEATURES[detail]} is not a hexadecimal number of at most 8 digits"
    return "an empty line"


class RowReader:
    """Reads from where `state` is to the end of the last file, and appends the rows to the array files.

    folder: where the array files lie
    progress: told of every block; stop: polled after it; save: keeps the state
    """

    def __init__(
        self,
        folder: Path,
        sources: list[InputFile],
        layouts: list[RowLayout],
        *,
        options: CriteoOptions,
        choices: CriteoChoices,
        state: CriteoState,
        progress: ShowProgress,
        stop: Stop,
        save: Callable[[], None],
    ) -> None:
        self.folder, self.sources, self.layouts = folder, sources, layouts
        self.options, self.choices, self.state = options, choices, state
        self.progress, self.stop, self.save = progress, stop, save
        self.total_bytes = sum(source.bytes for source in sources)
        self._saved = time.monotonic()

    def run(self) -> None:
        """Read on to the end; raise Interrupted, with the state saved, when stopped before it."""
        state = self.state
        with ExitStack() as stack:
            writers = {
                file: stack.enter_context(RowWriter(self.folder / file, columns=NUM_COLUMNS, rows=rows))
                for file, rows in state.written.items()
            }
            while state.source < len(self.sources):
                self._read_source(writers)
                state.source, state.offset, state.lines = state.source + 1, 0, 0
            for writer in writers.values():
                writer.finish()
        self.save()

    def _read_source(self, writers: dict[str, RowWriter]) -> None:
        state, source, layout = self.state, self.sources[self.state.source], self.layouts[self.state.source]
        before = sum(source.bytes for source in self.sources[: state.source])
        rows = read_rows(source, layout, offset=state.offset, block_bytes=self.options.block_bytes)
        with (
            closing(read_ahead(rows, depth=2)) as blocks,
            closing(
                in_order(blocks, row_parser(self.choices.buckets, layout), threads=num_threads(self.options))
            ) as results,
        ):
            for block, parsed in results:
                self._append(writers, parsed, source, layout)
                state.offset = block.offset
                self.progress("read", before + block.done, self.total_bytes, {"rows": state.rows})
                stopped = self.stop()
                if stopped or time.monotonic() - self._saved > self.options.journal_seconds:
                    for writer in writers.values():
                        writer.flush()  # the journal must not tell of rows that a power cut could take
                    self.save()
                    self._saved = time.monotonic()
                if stopped:
                    raise Interrupted("stopped")

    def _append(self, writers: dict[str, RowWriter], parsed: Parsed, source: InputFile, layout: RowLayout) -> None:
        state = self.state
        above = state.lines + (layout.header_lines if state.offset == 0 else 0)
        for line, reason, detail in parsed.bad.tolist():
            if len(state.bad_locations) < MAX_LOCATED:
                why = describe(REASONS[reason], detail, labelled=layout.labelled)
                state.bad_locations.append(f"{source.path}:{above + line}: {why}")
        for reason in np.flatnonzero(parsed.counts):
            state.bad[REASONS[reason]] = state.bad.get(REASONS[reason], 0) + int(parsed.counts[reason])
        if state.bad and self.choices.bad_rows == "refuse":
            bad, read = sum(state.bad.values()), state.rows + len(parsed.rows)
            raise UserError(
                f"{state.bad_locations[0]}. {bad:,} of the first {bad + read:,} rows {'is' if bad == 1 else 'are'} "
                "bad. Repair the file, or leave bad rows out with --bad-rows skip."
            )
        if self.choices.split == "random":
            mask = self._drawn(len(parsed.rows))
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

    def _drawn(self, count: int) -> np.ndarray:
        # Which of the next rows are validation rows, bool [count].
        from odist.prepare.criteo.kernels import drawn

        share, seed, border = self.choices.validation_fraction, self.choices.split_seed, self.state.border
        assert share is not None
        assert seed is not None
        return np.asarray(drawn(self.state.rows, count, seed, int(share * 2**53) if border is None else border))


def row_parser(buckets: int, layout: RowLayout, *, located: int | None = MAX_LOCATED) -> Callable[[TextBlock], Parsed]:
    """What parses blocks of text, in any thread. buckets: of the hash; located: bad rows with their lines, None: all"""
    from odist.prepare.criteo import kernels

    table, missing_ids = kernels.log_table(), kernels.special_ids(kernels.MISSING_VALUE, buckets)
    shortest = len(FEATURES) + 2 * layout.labelled  # bytes of a row with nothing but separators

    def parse(block: TextBlock) -> Parsed:
        text = np.frombuffer(block.text, dtype=np.uint8)
        out = np.empty((len(text) // shortest + 1, NUM_COLUMNS), dtype=np.int32)
        missing, counts = np.zeros(len(FEATURES), dtype=np.int64), np.zeros(kernels.NUM_REASONS, dtype=np.int64)
        bad = np.zeros((block.text.count(b"\n") if located is None else located, 3), dtype=np.int64)
        outputs = (out, out.view(np.float32), missing, bad, counts)
        form = (layout.separator, layout.labelled)
        rows, lines, clicks = kernels.parse_rows(text, *form, buckets, missing_ids, table, *outputs)
        return Parsed(out[:rows], lines, clicks, missing, bad[: min(len(bad), int(counts.sum()))], counts)

    return parse


def num_threads(options: CriteoOptions) -> int:
    """Return the number of parsing threads: as asked for, or one per core, at most 4."""
    return options.threads or min(4, num_cores())
