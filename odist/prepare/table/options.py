"""Options and report of the preparation of a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.config.key import BELOW_ONE, Bounds, key
from odist.errors import UserError
from odist.prepare.options import resolve
from odist.prepare.table.schema import TableSchema, read_schema, schema_of

if TYPE_CHECKING:
    from odist.data.rows import RowStore


@dataclass(frozen=True)
class TableOptions:
    """What may be asked of a preparation; None is the default of `TableChoices`, or what --like says.

    block_bytes: of text read at once; journal_seconds: between two points to continue from. They never change the result.
    """

    schema: Path | None = key(None, "YAML file that says what the columns are.")
    split: str | None = key(None, "Validation part: the last rows, or random ones.", choices=("time", "random"))
    validation_fraction: float | None = key(None, "Share of validation rows, also with --like.", bounds=BELOW_ONE)
    split_seed: int | None = key(None, "Seed of --split random.", bounds=Bounds(0, 2**63 - 1))
    bad_rows: str | None = key(
        None, "What to do with unreadable rows: stop at the first, or count and skip them.", choices=("refuse", "skip")
    )
    format: str | None = key(
        None, "Format of the input; gzip is recognised by itself.", choices=("auto", "tsv", "csv", "parquet")
    )
    block_bytes: int = 1 << 20
    journal_seconds: float = 5.0

    def resolve(self, other: RowStore | None) -> tuple[TableChoices, TableSchema]:
        """Leave nothing open. other: the store named by --like. Raises UserError for a wrong option, schema or store."""
        if other is None:
            if self.schema is None:
                raise UserError(
                    "no --schema. Name a YAML file that says what the columns are; to draft one: odist prepare table "
                    "--input FILE --print-schema"
                )
            return resolve(self, TableChoices, like=None, fixed={}), read_schema(self.schema)
        if "schema" not in other.meta:
            raise UserError(f"{other.path}: not a store of `odist prepare table`, which --like needs.")
        schema = schema_of(other.meta["schema"])
        if self.schema is not None:
            own = read_schema(self.schema)
            theirs = schema.meaning  # in which the order of the columns counts
            differing = [name for name, value in own.meaning.items() if json.dumps(value) != json.dumps(theirs[name])]
            if differing:
                raise UserError(
                    f"{self.schema}: not what {other.path} was made with; different: {', '.join(differing)}. With --like "
                    "only weight, time and key may be others."
                )
            schema = own
        return resolve(self, TableChoices, like=other.path, fixed={}), schema


@dataclass(frozen=True)
class TableChoices:
    """Options with nothing left open, as they stand in store.json; without a split every row is a validation row."""

    split: str | None = "time"
    validation_fraction: float | None = 0.2
    split_seed: int | None = 0
    bad_rows: str = "refuse"
    format: str = "auto"


@dataclass
class TableReport:
    """What a preparation did. Fields without a default are kept in store.json under "report"."""

    rows: dict[str, int]  # by split
    bad_rows: dict[str, int]  # skipped rows by reason: columns, empty, label, numeric, weight, time, key
    bad_locations: list[str]  # "file:line: reason" of the first few; lines from 1, header included
    label_rates: dict[str, float] | None  # share of ones over all rows; None without labels
    missing: dict[str, int]  # empty cells by column, over all rows
    vocabularies: dict[str, int]  # values that a vocabulary has kept, by column
    embedding_rows: int  # ids of all categorical columns
    input_bytes: int  # as they lie on the disk
    store_bytes: int
    sources: list[dict[str, Any]]  # path, bytes, modified_ns, rows
    fingerprint: str
    fitted_fingerprint: str
    seconds: float = 0.0  # of this call
    reused: bool = False  # the store was there already
