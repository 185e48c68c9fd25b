"""Raw Criteo rows as batches: read, parsed and hashed as `odist prepare criteo` does, with the line of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, cast

import numpy as np

from odist.data.rows import RowStore
from odist.errors import UserError
from odist.prepare.criteo.fit import NUM_COLUMNS, load_rare
from odist.prepare.criteo.input import find_row_layout, read_rows
from odist.prepare.criteo.options import CriteoOptions
from odist.prepare.criteo.read import REASONS, describe, row_parser
from odist.prepare.inputs import find_files
from odist.prepare.lines import read_ahead
from odist.tasks.criteo import CriteoTask, PreparedSource

if TYPE_CHECKING:
    from odist.deploy.predict import Examples, Reading

LABEL, LINE = "label", "line"


def examples(reading: Reading) -> Iterator[Examples]:
    """Every row that can be read, in order, in batches of the run's evaluation.

    columns: `file` where there are several, `line`, counted from 1 with the header, and `label` where there is one
    """
    from odist.deploy.predict import Examples

    task = cast(CriteoTask, reading.task)
    store = cast(PreparedSource, task.source)
    sources = find_files(reading.inputs)
    layouts = [find_row_layout(source, format_name="auto") for source in sources]
    if len({layout.labelled for layout in layouts}) > 1:
        raise UserError("some of the files have labels and some have none. Predict them apart.")
    labelled = layouts[0].labelled
    size, held = reading.batch_rows, _Held()

    def example(rows: int) -> Examples:
        packed, numbers, lines = held.take(rows)
        columns = {"file": np.array([str(sources[n].path) for n in numbers])} if len(sources) > 1 else {}
        columns[LINE] = lines
        if labelled:
            columns[LABEL] = packed[:, 0].astype(np.int64)
        return Examples(task.batch_of(store.unpacked(packed)), columns)

    for packed, number, lines in _rows(reading):
        held.add(packed, number, lines)
        while held.rows >= size:
            yield example(size)
    if held.rows:
        yield example(held.rows)


class _Held:
    """Rows that are read and not yet predicted."""

    def __init__(self) -> None:
        self.rows = 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, packed: np.ndarray, number: int, lines: np.ndarray) -> None:
        self._parts.append((packed, np.full(len(packed), number), lines))
        self.rows += len(packed)

    def take(self, rows: int) -> list[np.ndarray]:
        """The first so many: packed rows, numbers of their files, lines."""
        whole = [np.concatenate(each) for each in zip(*self._parts, strict=True)]
        self._parts = [(whole[0][rows:], whole[1][rows:], whole[2][rows:])]
        self.rows -= rows
        return [each[:rows] for each in whole]


def _rows(reading: Reading) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Packed rows int32 [n, 40], the number of their file, and their lines."""
    from odist.prepare.criteo import kernels

    store = RowStore.open(reading.store)
    buckets = int(store.meta["options"]["buckets"])
    entry = store.fitted.get("rare")
    rare = None if entry is None else load_rare(store.path, entry, buckets=buckets)
    rare_ids = kernels.special_ids(kernels.RARE_VALUE, buckets)
    sources = find_files(reading.inputs)
    total, before, count = sum(source.bytes for source in sources), 0, 0
    for number, source in enumerate(sources):
        layout = find_row_layout(source, format_name="auto")
        parse = row_parser(buckets, layout, located=None)
        above = layout.header_lines
        blocks = read_rows(source, layout, offset=0, block_bytes=CriteoOptions().block_bytes)
        with closing(read_ahead(blocks, depth=2)) as ahead:
            for block in ahead:
                parsed = parse(block)
                for line, reason, detail in parsed.bad.tolist():
                    why = describe(REASONS[reason], detail, labelled=layout.labelled)
                    reading.bad.add(f"{source.path}:{above + line}", REASONS[reason], detail=why)
                    if reading.refuse:
                        raise UserError(f"{reading.bad.located[0]}. Leave bad rows out with --bad-rows skip.")
                lines = np.setdiff1d(np.arange(1, parsed.lines + 1), parsed.bad[:, 0])
                assert len(lines) == len(parsed.rows)
                packed = np.ascontiguousarray(parsed.rows).reshape(-1, NUM_COLUMNS)
                if rare is not None:
                    kernels.replace_rare(packed, rare, rare_ids)
                count += len(packed)
                yield packed, number, above + lines
                above += parsed.lines
                reading.progress("read", before + block.done, total, {"rows": count})
                reading.poll()
        before += source.bytes
