"""Options and report of a Criteo preparation.

The paper (Anil et al. 2018, section 3.1) says nothing about preprocessing or split; every choice is an option here, or
is written beside the code that makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odist.config.key import BELOW_ONE, Bounds, key
from odist.errors import UserError
from odist.prepare.options import resolve

if TYPE_CHECKING:
    from odist.data.rows import RowStore

MEANING = ("buckets", "min_count")  # options that give ids their meaning: with --like those of the other store


@dataclass(frozen=True)
class CriteoOptions:
    """What may be asked of a preparation; None is the default of `CriteoChoices`, or what --like says.

    threads: parsing threads, None: one per core, at most 4
    block_bytes: of text parsed at once
    journal_seconds: between two points to continue from. These three never change the result.
    """

    buckets: int | None = key(None, "Embedding rows in all, by hashing.", bounds=Bounds(1, 2**31 - 1))
    split: str | None = key(None, "Validation part: the last rows, or random ones.", choices=("time", "random"))
    validation_fraction: float | None = key(None, "Share of validation rows, also with --like.", bounds=BELOW_ONE)
    split_seed: int | None = key(None, "Seed of --split random.", bounds=Bounds(0, 2**63 - 1))
    min_count: int | None = key(
        None, "Values seen less often in training become one rare value; 0: off.", bounds=Bounds(0, 255)
    )
    bad_rows: str | None = key(
        None, "What to do with unreadable rows: stop at the first, or count and skip them.", choices=("refuse", "skip")
    )
    format: str | None = key(
        None, "Format of the input; gzip is recognised by itself.", choices=("auto", "tsv", "csv", "parquet")
    )
    threads: int | None = None
    block_bytes: int = 1 << 20
    journal_seconds: float = 5.0

    def resolve(self, other: RowStore | None) -> CriteoChoices:
        """Leave nothing open. other: the store named by --like. Raises UserError for a wrong option or store."""
        if other is None:
            return resolve(self, CriteoChoices, like=None, fixed={})
        from odist.prepare.criteo.kernels import HASH

        if other.task != "criteo" or other.fitted.get("hash") != HASH:
            raise UserError(
                f"{other.path}: not a Criteo store of {HASH}; --like needs one made by `odist prepare criteo`."
            )
        theirs = {name: other.meta["options"][name] for name in MEANING}
        return resolve(self, CriteoChoices, like=other.path, fixed=theirs)


@dataclass(frozen=True)
class CriteoChoices:
    """Options with nothing left open, as they stand in store.json; without a split every row is a validation row."""

    buckets: int = 1_000_000
    min_count: int = 0  # of a bucket's id in the training part, counted up to 255
    split: str | None = "time"
    validation_fraction: float | None = 0.2
    split_seed: int | None = 0
    bad_rows: str = "refuse"
    format: str = "auto"


@dataclass
class CriteoReport:
    """What a preparation did. Fields without a default are kept in store.json under "report"."""

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
    seconds: float = 0.0  # of this call
    reused: bool = False  # the store was there already
