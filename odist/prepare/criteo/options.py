"""What a Criteo preparation may be asked for, and what it reports.

The paper (Anil et al. 2018, section 3.1) says nothing about preprocessing or split; every choice is a
field here, or written beside the code that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from odist.data.rows import RowStore
from odist.errors import UserError

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

    The paper is silent on all of them. `like` refuses a value that contradicts the other store; with it every row is
    a validation row, unless a validation_fraction is given.
    """

    buckets: int | None = None  # [1,000,000] embedding rows in all; one table shared by the 26 columns, by hashing
    min_count: int | None = None  # [0 = off] ids seen less often in the training part (at most 255) become "rare"
    split: str | None = None  # [time] validation rows: the last ones in file order ("time"), or drawn ones ("random")
    validation_fraction: float | None = None  # [0.2] share of validation rows, in [0, 1)
    split_seed: int | None = None  # [0] of split "random"; non-negative
    bad_rows: str = "refuse"  # refuse: stop at the first | skip: count, locate the first few, go on
    format: str = "auto"  # auto | tsv | csv | parquet; gzip is recognised by itself
    threads: int | None = None  # parsing threads, null: one per core, at most 4; never changes the result
    block_bytes: int = 1 << 20  # text parsed at once; never changes the result
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


def resolve(options: CriteoOptions, other: RowStore | None) -> dict[str, Any]:
    """Options with nothing left open, those of `other` (the `like` store) included; UserError for a wrong one."""
    given = {key: getattr(options, key) for key in DEFAULTS}
    if other is not None:
        from odist.prepare.criteo.kernels import HASH

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
        chosen = {key: other.meta["options"][key] for key in MEANING} | splitting(given, SPLITTING, DEFAULTS)
    else:
        chosen = {key: DEFAULTS[key] if value is None else value for key, value in given.items()}
    _check(chosen)
    for key, allowed in (("bad_rows", ("refuse", "skip")), ("format", ("auto", "tsv", "csv", "parquet"))):
        chosen[key] = getattr(options, key)
        if chosen[key] not in allowed:
            raise UserError(f"{key}={chosen[key]!r}: expected one of {', '.join(allowed)}.")
    return chosen


def splitting(given: Mapping[str, Any], keys: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options `keys` of a split with --like: null each, every row being a validation row, unless a share is given.

    UserError where the others are given without it.
    """
    if given["validation_fraction"] is not None:
        return {key: defaults[key] if given[key] is None else given[key] for key in keys}
    wrong = [key for key in keys if given[key] is not None]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: with --like every row becomes a validation row, so there is no split. Give "
                        "--validation-fraction too, and the others are training rows; or leave it out.")  # fmt: skip
    return dict.fromkeys(keys)


def _check(chosen: dict[str, Any]) -> None:
    if not 1 <= chosen["buckets"] < 2**31:
        raise UserError(f"buckets={chosen['buckets']}: expected a number from 1 to 2147483647.")
    if not 0 <= chosen["min_count"] <= 255:
        raise UserError(f"min_count={chosen['min_count']}: expected a number from 0 (off) to 255.")
    if chosen["validation_fraction"] is None:
        return
    if chosen["split"] not in ("time", "random"):
        raise UserError(f"split={chosen['split']!r}: expected time or random.")
    if not 0 <= chosen["validation_fraction"] < 1:
        raise UserError(f"validation_fraction={chosen['validation_fraction']}: expected a share from 0 to below 1.")
    if not 0 <= chosen["split_seed"] < 2**63:
        raise UserError(f"split_seed={chosen['split_seed']}: expected a non-negative number below 2**63.")
