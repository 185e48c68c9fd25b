"""Any table of clicks -> a memory-mapped store (odist.data.rows), by a schema that says what its columns are.

Reading streams, and so does what follows; only the values of vocabulary columns are all in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.rows import KEYS_FILE
from odist.errors import UserError
from odist.prepare.inputs import find_files
from odist.prepare.job import ShowProgress, Stop
from odist.prepare.rows import RowPreparation
from odist.prepare.table.fit import Division, divide, fit, order_by_time, place_ids, write_split
from odist.prepare.table.input import check_columns, describe_columns, open_table
from odist.prepare.table.options import TableOptions, TableReport
from odist.prepare.table.read import ROWS, VALUES, TableReader, TableState, layout_of
from odist.prepare.table.schema import draft
from odist.prepare.table.values import Values, kept_values

ORDERED = "ordered.npy"  # in the work folder
RARE, FIRST_VALUE = 1, 2  # of a vocabulary's own ids; 0 is missing

__all__ = ["TableOptions", "TableReport", "draft_schema", "prepare_table"]


def prepare_table(
    inputs: list[str],
    *,
    output: Path,
    like: Path | None = None,
    options: TableOptions,
    progress: ShowProgress | None = None,
    stop: Stop | None = None,
) -> TableReport:
    """Turn a table into a store; the same call continues an interrupted one, to the same bytes.

    inputs: Parquet, or text with a header, plain or gzip; files, patterns, folders of Parquet files, in order of time
    where the schema names no time
    Other arguments and errors as of `odist.prepare.criteo.prepare.prepare_criteo`.
    """
    return TablePreparation(inputs, like=like, options=options, progress=progress, stop=stop).run(output)


def draft_schema(inputs: list[str], *, format_name: str = "auto") -> str:
    """Draft a schema, as YAML, from the columns of the first input."""
    file = open_table(find_files(inputs)[0], format_name=format_name)
    return draft(describe_columns(file), source=file.source.path.name)


class TablePreparation(RowPreparation[TableOptions, TableReport, TableState]):
    """One call: reading, ordering, fitting, writing, with `state` as the only thing that changes."""

    full_disk = "The rows lie there twice while they are prepared, 4 bytes a column. Make room, or name another disk."
    report_type = TableReport

    def find(self, inputs: list[str], like: Path | None) -> None:
        self.other = self.open_like(like)
        self.choices, self.schema = self.options.resolve(self.other)
        self.files = [open_table(source, format_name=self.choices.format) for source in find_files(inputs)]
        labelled = [check_columns(file, self.schema, may_lack_labels=like is not None) for file in self.files]
        self.labelled = labelled[0]
        if len(set(labelled)) > 1:
            with_label, without = (self.files[labelled.index(known)].source.path for known in (True, False))
            raise UserError(f"{with_label} has labels, {without} has none. Prepare them apart.")
        self.layout = layout_of(self.schema, self.files)
        self.state = TableState(
            source_rows=[0] * len(self.files),
            positives=[0] * len(self.schema.label),
            missing=dict.fromkeys(self.schema.features, 0),
        )

    def request(self) -> dict[str, Any]:
        return {
            "task": "criteo",
            "schema": asdict(self.schema),
            "options": asdict(self.choices),
            "like": None if self.other is None else self.other.fitted_fingerprint,
            "sources": [file.source.identity() for file in self.files],
        }

    def steps(self) -> dict[str, Callable[[], None]]:
        return {"read": self._read, "order": self._order, "fit": self._fit}

    def _read(self) -> None:
        if self.state.fitted is not None:
            coded = [name for name, column in self.schema.categorical.items() if column.encoding == "vocabulary"]
            self.values = Values(self.work / VALUES, coded, length=self.state.value_bytes)
            self.values.close()
            return
        self.values = TableReader(
            self.folder,
            self.work,
            self.files,
            schema=self.schema,
            layout=self.layout,
            labelled=self.labelled,
            options=self.options,
            choices=self.choices,
            state=self.state,
            progress=self.progress,
            stop=self.stop,
            save=self.save,
        ).run()
        if self.state.rows == 0:
            found = self.state.bad_locations
            raise UserError(f"no row of the input could be used{f'; the first: {found[0]}' if found else ''}.")

    def _order(self) -> None:
        # Random parts are drawn by the number of a row as it was read.
        if self._is_sorted and self.state.fitted is None:
            order_by_time(
                self.work / ROWS, self.work / ORDERED, layout=self.layout, rows=self.state.rows, poll=self.poll
            )

    @property
    def _is_sorted(self) -> bool:
        return self.layout.time and not self.state.in_order and self.choices.split == "time"

    @property
    def _rows(self) -> Path:
        return self.work / (ORDERED if self._is_sorted else ROWS)

    def _division(self) -> Division:
        options = self.choices
        return divide(self.state.rows, split=options.split, share=options.validation_fraction, seed=options.split_seed)

    def _fit(self) -> None:
        division = self._division()
        if self.state.fitted is None:
            self.state.fitted = self._fitted(division) if self.other is None else self.other.fitted
            self.save()

    def _fitted(self, division: Division) -> dict[str, Any]:
        schema = self.schema
        mean, deviation, counts = fit(
            self._rows,
            schema=schema,
            layout=self.layout,
            rows=self.state.rows,
            division=division,
            num_values={name: len(own) for name, own in self.values.numbers.items()},
            poll=self.poll,
        )
        vocabularies = {}
        for name, own in self.values.numbers.items():
            least = schema.categorical[name].min_count
            least = schema.min_count if least is None else least
            vocabularies[name] = kept_values(own, counts[name], min_count=least, name=name)
        entries, num_ids = place_ids(schema, vocabularies)
        from odist.prepare.table.hashing import HASH

        return {
            "hash": HASH,
            "labels": schema.label,
            "numeric": [[name, column.transform] for name, column in schema.numeric.items()],
            "numeric_mean": mean,
            "numeric_std": deviation,
            "categorical": entries,
            "num_ids": num_ids,
        }

    def _final_ids(self, entry: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
        first = entry["first"]
        if entry["encoding"] == "hash":
            return lambda ids: ids + np.int32(first)
        own = self.values.numbers[entry["name"]]
        final = np.full(len(own) + 1, first + RARE, dtype=np.int32)
        final[0] = first
        for place, text in enumerate(entry["values"]):
            if text in own:
                final[own[text]] = first + FIRST_VALUE + place
        return lambda numbers: final[numbers]

    def finish(self) -> tuple[dict[str, Any], TableReport]:
        state, fitted, schema, layout = self.state, self.state.fitted, self.schema, self.layout
        assert fitted is not None
        rows, digests = write_split(
            self.folder,
            self._rows,
            layout=layout,
            rows=state.rows,
            division=self._division(),
            final_ids=[self._final_ids(entry) for entry in fitted["categorical"]],
            poll=self.poll,
        )
        if layout.key == "text":
            with open(self.folder / KEYS_FILE, "rb") as file:
                digests["keys"] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            (self.folder / KEYS_FILE).unlink(missing_ok=True)
        known = {"layout": asdict(layout), "schema": asdict(schema)}
        report = TableReport(
            rows=rows,
            label_rates=self._rates() if self.labelled else None,
            missing=state.missing,
            vocabularies={one["name"]: len(one["values"]) for one in fitted["categorical"] if "values" in one},
            embedding_rows=fitted["num_ids"],
            **self.what_was_read([file.source for file in self.files]),
            **self.fingerprints((), {"rows": rows, "digests": digests, **known}),
        )
        splits = {split: {"file": f"{split}.npy", "start": 0, "stop": number} for split, number in rows.items()}
        own = {"columns": layout.columns, "splits": splits, **known, "key_bytes": state.key_bytes}
        return self.record(report, **own), report

    def _rates(self) -> dict[str, float]:
        return {
            name: number / self.state.rows for name, number in zip(self.schema.label, self.state.positives, strict=True)
        }
